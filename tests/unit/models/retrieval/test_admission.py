from models.retrieval.admission import Admission


def test_an_item_is_admitted_with_its_nth_watch_and_then_forgotten():
    admission = Admission(3)
    assert [admission.admits("a") for _ in range(2)] == [False, False]
    assert not admission.admits("b")
    assert admission.admits("a")
    assert len(admission) == 1
    assert Admission(1).admits("a"), "at once where one is enough"


def test_memory_is_bounded_and_the_longest_waiting_is_forgotten_first():
    admission = Admission(2, capacity=2)
    for item in ("a", "b", "c"):
        assert not admission.admits(item)
    assert len(admission) == 2
    assert admission.admits("b")
    assert not admission.admits("a")  # its first watch was forgotten
