import numpy as np

from models.catalogue import Catalogue
from models.cold_start import SHRINK, ColdStart


def cold_start() -> ColdStart:
    catalogue = Catalogue()
    for item_id, channel, topics in (("a", "c", ["t"]), ("b", "c", []), ("d", "e", ["t", "s"]), ("new", "f", ["r"])):
        catalogue.upsert(item_id, channel=channel, topics=topics)
    vectors = np.array([[1.0], [3.0], [8.0], [99.0]], np.float32)
    learnt = np.array([True, True, True, False])
    return ColdStart(vectors, vectors[:, 0], -vectors, catalogue=catalogue, learnt=learnt)


def test_a_new_item_starts_at_the_mean_of_its_channel_and_its_topics():
    overall = 4.0
    channel, topic = (1 + 3 + SHRINK * overall) / (2 + SHRINK), (1 + 8 + SHRINK * overall) / (2 + SHRINK)
    start = cold_start().place("c", ["t", "unheard"])
    np.testing.assert_allclose(start.vector, [(channel + topic) / 2], rtol=1e-6)
    np.testing.assert_allclose(start.bias, (channel + topic) / 2, rtol=1e-6)
    np.testing.assert_allclose(start.query_row, [-(channel + topic) / 2], rtol=1e-6)


def test_an_item_of_which_nothing_is_known_starts_at_the_mean_of_all():
    np.testing.assert_allclose(cold_start().place(None, ()).vector, [4.0])
    np.testing.assert_allclose(cold_start().place("unheard", ["unheard"]).vector, [4.0])


def test_items_that_have_learnt_nothing_do_not_count():
    np.testing.assert_allclose(cold_start().place("f", ["r"]).vector, [4.0])
