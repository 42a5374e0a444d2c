import numpy as np

from infra.console.neighbours import SHOWN, nearest


def test_the_nearest_are_those_of_the_same_direction_however_long():
    own = np.array([1, 0], np.float32)
    vectors = {"own": own, "same": 9 * own, "half": np.array([1, 1], np.float32), "none": np.zeros(2, np.float32)}
    vectors["other"] = np.array([-1, 0], np.float32)
    found = nearest("own", own, vectors)
    assert [each.item_id for each in found] == ["same", "half", "none", "other"]
    assert [round(each.cosine, 3) for each in found] == [1.0, 0.707, 0.0, -1.0]


def test_alone_it_has_no_neighbours_and_of_many_the_nearest_are_shown():
    own = np.array([1, 0], np.float32)
    assert nearest("own", own, {"own": own}) == []
    assert len(nearest("own", own, {str(at): own for at in range(3 * SHOWN)})) == SHOWN
