"""Which examples make which batch."""

import itertools

from fledge.data.batch_order import BatchOrder


def test_each_pass_has_each_example_once_in_another_order() -> None:
    batches = BatchOrder(10, 4, 2, 5, 0)
    assert [len(batch) for batch in batches] == [2] * len(batches) == [2] * 10
    read = list(itertools.chain(*batches))
    assert sorted(read[:10]) == sorted(read[10:]) == list(range(10))
    assert read[:10] != read[10:]


def test_a_longer_run_begins_as_a_shorter_one() -> None:
    for lengths in (None, [(7 * n) % 13 for n in range(10)]):
        assert list(BatchOrder(10, 4, 4, 9, 3, lengths))[:5] == list(BatchOrder(10, 4, 4, 5, 3, lengths))
        assert list(BatchOrder(10, 4, 4, 5, 3, lengths)) != list(BatchOrder(10, 4, 4, 5, 4, lengths))


def test_microbatches_cut_the_same_steps() -> None:
    for lengths in (None, [(7 * n) % 13 for n in range(10)]):
        whole, cut = BatchOrder(10, 4, 4, 7, 0, lengths), BatchOrder(10, 4, 1, 7, 0, lengths)
        assert list(itertools.chain(*whole)) == list(itertools.chain(*cut))


def test_buckets_hold_examples_of_about_one_length() -> None:
    lengths = [(7 * n) % 97 for n in range(400)]
    batches = list(BatchOrder(400, 8, 8, 50, 0, lengths))
    read = list(itertools.chain(*batches))
    assert sorted(read) == list(range(400))
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    assert padded < 1.15 * sum(lengths[i] for i in read)
    means = [sum(lengths[i] for i in batch) / len(batch) for batch in batches]
    assert means != sorted(means)


def test_no_example_meets_itself_in_a_batch_however_few_there_are() -> None:
    batches = list(BatchOrder(12, 4, 4, 30, 0, list(range(12))))
    assert all(len(set(batch)) == 4 for batch in batches)


def test_lengths_do_not_come_in_the_same_turn_again_and_again() -> None:
    longest = [max(batch) for batch in BatchOrder(16, 4, 4, 40, 0, list(range(16)))]  # four steps a pass
    assert len({tuple(longest[start : start + 4]) for start in range(0, 40, 4)}) > 1
