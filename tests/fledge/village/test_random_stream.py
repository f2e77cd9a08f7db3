"""The random numbers are splitmix64's, by every route."""

from fledge.village.random_stream import Stream, make_key, mix, numbered_streams


def test_stream_gives_the_published_numbers_of_splitmix64() -> None:
    # Reference implementation (Vigna, prng.di.unimi.it/splitmix64.c) with state 0.
    stream = Stream(0)
    assert [next(stream) for _ in range(3)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_numpy_blocks_equal_the_plain_stream_and_go_on_past_their_end() -> None:
    golden = 0x9E3779B97F4A7C15
    for index, draws in zip(range(250, 520), numbered_streams(7, 250, 270, ready=5), strict=True):
        plain = Stream(mix((7 + index * golden) % 2**64))
        assert [next(draws) for _ in range(9)] == [next(plain) for _ in range(9)]


def test_key_depends_on_every_part_and_its_kind() -> None:
    keys = {make_key("a", 1), make_key("a", 2), make_key("b", 1), make_key("a1"), make_key("a", "1")}
    assert len(keys) == 5


def test_sample_gives_different_items_each_place_equally_often() -> None:
    stream = Stream(1)
    firsts = [0] * 4
    for _ in range(4000):
        chosen = stream.sample(range(4), 2)
        assert chosen[0] != chosen[1]
        firsts[chosen[0]] += 1
    # Binomial(4000, 1/4): standard deviation 27.
    assert all(abs(count - 1000) < 120 for count in firsts)
