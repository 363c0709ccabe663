"""The feed: batches as a pure function of (seed, step), whoever makes them."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

import flipkit
from flipkit import Feed
from flipkit.errors import BadSample, ConfigurationError, DataError
from flipkit.tokenizers import Bytes, WordPiece

SIZE = 16  # pixels


class Numbered(flipkit.Dataset):
    """Sample i is a grey picture of i's colour, called "i" and more; some samples are bad."""

    def __init__(self, size=20, texts=1, bad=()):
        self.size, self.texts_each, self.bad = size, texts, bad

    def __len__(self):
        return self.size

    def __getitem__(self, i):
        if i in self.bad:
            raise BadSample(f"number {i} is bad")
        image = np.full((SIZE, SIZE, 3), i, "uint8")
        return {"image": image, "texts": self.texts(i), "id": f"number {i}"}

    def texts(self, i):
        return [f"{i}", *(f"{i}{letter}" for letter in "abcdefg"[: self.texts_each - 1])]


@dataclasses.dataclass
class Model:
    """What a feed asks of a model, and nothing else."""

    tokenizer: object
    reads: str = "text"
    image: object = flipkit.ViT(image_size=SIZE, patch_size=8, dim=16, depth=1, heads=1)
    text: object = flipkit.TextTransformer(vocab=259, length=8, dim=16, depth=1, heads=1)
    preprocessing: object = flipkit.Preprocessing()


def opened(data, batch_size=4, *, seed=0, first=0, tokenizer=None, **settings):
    settings = {"crop": None, "flip": False, **settings}
    model = Model(tokenizer or Bytes())
    return Feed(**settings).open(data, model, batch_size, seed=seed, first=first)


def numbers(batches, slots):
    """The samples in the first `slots` slots, told by their pictures."""
    size = batches.batch_size
    assert slots % size == 0
    return [
        int(n) for step in range(slots // size) for n in batches.batch(step)["image"][:, 0, 0, 0]
    ]


def words(batch):
    """The texts of a batch of bytes."""
    return [bytes(b - 3 for b in row if b > 2).decode() for row in batch["text"]]


def same(a, b):
    assert a.keys() == b.keys()
    return all(np.array_equal(a[key], b[key]) for key in a)


def take(generator, count):
    batches = [next(generator)[0] for _ in range(count)]
    generator.close()
    return batches


def test_batch_holds_uint8_pictures_and_int32_ids():
    batch = opened(Numbered()).batch(0)
    assert batch["image"].shape == (4, SIZE, SIZE, 3)
    assert batch["image"].dtype == np.uint8
    assert batch["text"].shape == (4, 8)
    assert batch["text"].dtype == np.int32
    assert words(batch) == [str(n) for n in batch["image"][:, 0, 0, 0]]


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_give_what_batch_gives_from_any_step(threads):
    data = flipkit.CaptionedShapes(size=10, image_size=32)
    random = {"crop": (0.3, 1.0), "flip": True, "augment": flipkit.Augment(), "threads": threads}
    batches = opened(data, **random)
    expected = [batches.batch(step) for step in range(6)]
    for start in (0, 3):
        taken = take(opened(data, **random).from_step(start), 6 - start)
        assert all(same(a, b) for a, b in zip(taken, expected[start:], strict=True))


def test_stream_can_begin_at_any_slot():
    whole, part = opened(Numbered(7)), opened(Numbered(7), first=8)
    assert same(part.batch(0), whole.batch(2))
    assert same(take(part.from_step(1), 1)[0], whole.batch(3))


def test_order_does_not_depend_on_the_batch_size():
    assert numbers(opened(Numbered(), 4), 40) == numbers(opened(Numbered(), 10), 40)


@pytest.mark.parametrize(
    ("size", "block", "window"),
    [(20, 1, 64), (20, 4, 2), (23, 4, 2), (23, 4, 64), (3, 8, 2), (21, 5, 1), (1, 1, 1)],
)
def test_every_epoch_is_a_permutation_of_its_own(size, block, window):
    batches = opened(Numbered(size), batch_size=1, block=block, window=window)
    epochs = [[batches.slots.index(e * size + i) for i in range(size)] for e in range(3)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    if size > 3:
        assert epochs[0] != epochs[1] != epochs[2]
        assert epochs[0] != list(range(size))


def test_blocks_are_read_together_within_a_window():
    batches = opened(Numbered(64), batch_size=1, block=4, window=2)
    order = [batches.slots.index(i) for i in range(64)]
    for start in range(0, 64, 8):  # a window: two blocks, wherever they are
        blocks = {n // 4 for n in order[start : start + 8]}
        assert len(blocks) == 2
    assert order[:8] != sorted(order[:8])


def test_seeds_give_other_orders_crops_and_texts():
    orders = {tuple(numbers(opened(Numbered(20), seed=seed), 20)) for seed in range(4)}
    assert len(orders) == 4
    data = flipkit.CaptionedShapes(size=1, image_size=32)
    a, b = (opened(data, 1, seed=seed, crop=(0.1, 1)).batch(0) for seed in (0, 1))
    assert not np.array_equal(a["image"], b["image"])


def test_any_two_seeds_of_64_bits_are_two_streams():
    seeds = (0, 1, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1)
    orders = {tuple(numbers(opened(Numbered(20), seed=seed), 20)) for seed in seeds}
    assert len(orders) == len(seeds)
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert opened(Numbered(20), seed=np.int32(7)).slots.seed == 7


@pytest.mark.parametrize("seed", [1 << 64, -1, 1.0, "1", True, None])
def test_what_is_no_seed_of_64_bits_is_refused(seed):
    with pytest.raises(ConfigurationError, match=r"from 0 to 2\*\*64 - 1.* seed="):
        opened(Numbered(20), seed=seed)


@pytest.mark.parametrize(
    ("captions", "share"), [("first", 1), ("random", 0.25), (0.6, 0.6), (0, 0)]
)
def test_captions_are_the_first_any_or_the_first_with_a_chance(captions, share):
    batches = opened(Numbered(50, texts=4), batch_size=50, captions=captions)
    texts = [text for step in range(10) for text in words(batches.batch(step))]
    first = np.mean([text.isdigit() for text in texts])
    assert first == pytest.approx(share, abs=0.08 if 0 < share < 1 else 0)  # 4 standard deviations
    if share < 1:
        others = [np.mean([text.endswith(letter) for text in texts]) for letter in "abc"]
        assert others == pytest.approx([(1 - share) / 3] * 3, abs=0.08)


def test_a_single_caption_is_taken_whatever_the_chance_of_the_first():
    assert words(opened(Numbered(4), captions=0).batch(0))[0].isdigit()


def test_crops_and_flips_change_from_epoch_to_epoch():
    image = np.zeros((SIZE, SIZE, 3), "uint8")
    image[:, : SIZE // 2] = 255

    class Half(Numbered):
        def __getitem__(self, i):
            return super().__getitem__(i) | {"image": image}

    flipped = [opened(Half(1), 1, flip=True).batch(step)["image"][0, 0, 0, 0] for step in range(40)]
    assert 8 < sum(value == 0 for value in flipped) < 32
    assert all(
        np.array_equal(opened(Half(1), 1).batch(step)["image"][0], image) for step in range(9)
    )
    crops = opened(Half(1), 1, crop=(0.2, 0.5))
    assert len({crops.batch(step)["image"].tobytes() for step in range(9)}) > 1


def test_pictures_of_any_size_and_files_are_taken():
    file = io.BytesIO()
    Image.new("RGB", (50, 20), (9, 9, 9)).save(file, "PNG")

    class Files(Numbered):
        def __getitem__(self, i):
            return super().__getitem__(i) | {"image": file.getvalue()}

    for crop in (None, (0.1, 1.0)):
        batch = opened(Files(), crop=crop).batch(0)
        assert batch["image"].shape == (4, SIZE, SIZE, 3)
        assert (batch["image"] == 9).all()


# Bad samples


BAD = (3, 8)


def test_a_bad_sample_keeps_its_slot_and_leaves_the_others_alone():
    sound, batches = opened(Numbered(20), 20), opened(Numbered(20, bad=BAD), 20, bad_limit=1)
    before, after = numbers(sound, 60), numbers(batches, 60)
    changed = [slot for slot in range(60) if before[slot] != after[slot]]
    assert changed == [slot for slot in range(60) if before[slot] in BAD]
    assert not {*BAD} & {*after}


def test_a_bad_sample_is_replaced_alike_by_threads_and_recorded():
    data = Numbered(20, bad=BAD)
    alone = opened(data, bad_limit=1)
    expected = [alone.batch(step) for step in range(5)]
    threaded = opened(data, bad_limit=1, threads=4)
    assert all(same(a, b) for a, b in zip(take(threaded.from_step(), 5), expected, strict=True))
    assert threaded.rejects == alone.rejects
    assert threaded.seen == alone.seen == 20
    assert {index for _, index, _ in alone.rejects} == {*BAD}
    order = numbers(opened(Numbered(20)), 20)
    for slot, index, reason in alone.rejects:
        assert reason == f"number {index} is bad"
        assert order[slot] == index or slot in [s for s, i, _ in alone.rejects if i == order[s]]


@pytest.mark.slow  # test_fit trains with two workers in such a process
def test_workers_of_a_process_without_parsed_flags_give_what_batch_gives(fresh, tmp_path):
    """The bad samples too."""
    (tmp_path / "bad_data.py").write_text("""
import flipkit
class Bad(flipkit.CaptionedShapes):
    def __getitem__(self, i):
        if i % 5 == 3:
            raise flipkit.BadSample(f"{i} is bad")
        return super().__getitem__(i)
""")
    printed = fresh(f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import flipkit, numpy as np
from absl import flags
from bad_data import Bad
model = flipkit.FLIP(
    flipkit.ViT(image_size=16, patch_size=8, dim=16, depth=1, heads=1),
    flipkit.TextTransformer(vocab=259, length=8, dim=16, depth=1, heads=1),
    tokenizer="bytes",
)
assert not flags.FLAGS.is_parsed()
data = Bad(size=20, image_size=32)
alone = flipkit.Feed(bad_limit=1).open(data, model, 4, seed=3)
batches = flipkit.Feed(bad_limit=1, workers=2).open(data, model, 4, seed=3)
stream = batches.from_step(2)
for step in range(2, 7):
    [batch], expected = next(stream), alone.batch(step)
    assert all(np.array_equal(batch[key], expected[key]) for key in expected), step
stream.close()
assert batches.rejects == alone.rejects and len(alone.rejects) >= 4
assert batches.seen == alone.seen == 20
print("same")
""")
    assert printed.strip().endswith("same")


def test_a_sample_without_text_or_with_an_unreadable_picture_is_replaced_and_named():
    class Broken(Numbered):
        def __getitem__(self, i):
            sample = super().__getitem__(i)
            changes = {1: {"texts": []}, 2: {"image": b"no picture"}}
            return sample | changes.get(int(i), {})

    batches = opened(Broken(20), 20, bad_limit=1)
    assert not {1, 2} & {*numbers(batches, 20)}
    reasons = {index: reason for _, index, reason in batches.rejects}
    assert reasons[1] == "number 1: no text"
    assert reasons[2].startswith("number 2: Can't decode the image")


def test_labels_are_whole_numbers_of_any_type_and_nothing_else():
    classifier = Model(None, reads="label")
    classifier.classes = 3

    class Labelled(Numbered):
        labels = (2, 2.0, np.int64(2), np.float32(2))

        def __getitem__(self, i):
            return super().__getitem__(i) | {"label": self.labels[i], "texts": []}

    batch = Feed(crop=None).open(Labelled(4), classifier, 4).batch(0)
    assert batch["label"].dtype == np.int32
    assert batch["label"].tolist() == [2] * 4
    for label, told in (("red", "whole number. .*label='red' of number 0"), (3, "from 0 to 2.*=3")):
        Labelled.labels = (label,)
        with pytest.raises(DataError, match=told):
            Feed(crop=None).open(Labelled(1), classifier, 1).batch(0)
    Labelled.labels = (None, 1)
    batches = Feed(crop=None, bad_limit=1).open(Labelled(2), classifier, 2)
    assert batches.batch(0)["label"].tolist() == [1, 1]
    assert [reason for *_, reason in batches.rejects] == ["number 0: no label"] * len(
        batches.rejects
    )


def test_too_many_bad_samples_stop_the_feed_with_a_summary():
    data = Numbered(200, bad=range(0, 200, 20))
    batches = opened(data, 20)
    with pytest.raises(DataError, match=r"feed\.bad_limit") as problem:
        [batches.batch(step) for step in range(100)]
    assert "more than the 1.0%" in str(problem.value)
    assert "is bad" in str(problem.value)
    assert batches.seen <= 1_000  # 5 % of a thousand are too many before they have been seen
    with pytest.raises(DataError, match=r"feed\.bad_limit"):
        take(opened(data, 20).from_step(), 100)


def test_a_few_bad_samples_at_the_start_are_given_time_to_even_out():
    batches = opened(Numbered(20, bad=[3]), 20)
    batches.batch(0)
    with pytest.raises(DataError, match="1 of 20 samples"):
        batches.check(final=True)


def test_data_that_is_all_bad_ends_instead_of_searching_for_ever():
    with pytest.raises(DataError, match="100 samples in a row"):
        opened(Numbered(20, bad=range(20))).batch(0)
    with pytest.raises(DataError, match="100 samples in a row"):
        next(opened(Numbered(20, bad=range(20))).from_step())


# What is refused


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(DataError, match=r"batch_size=21 and 20 samples"):
        opened(Numbered(20), 21)
    assert sorted(numbers(opened(Numbered(20), 20), 20)) == list(range(20))


def test_a_tokenizer_without_vocabulary_is_refused():
    with pytest.raises(ConfigurationError, match=r"model\.tokenizer\.train"):
        opened(Numbered(), tokenizer=WordPiece())


def test_a_model_without_tokenizer_is_refused():
    with pytest.raises(ConfigurationError, match="tokenizer"):
        Feed().open(Numbered(), Model(None), 4)


def test_a_vocabulary_larger_than_the_table_is_refused():
    class Large(Bytes):
        vocab = 260

    with pytest.raises(ConfigurationError, match=r"260 ids.*259 rows"):
        opened(Numbered(), tokenizer=Large())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"crop": (0, 1)}, r"crop=\(0, 1\)"),
        ({"crop": 0.5}, r"crop=0.5"),
        ({"crop": (0.5,)}, r"crop=\(0.5,\)"),
        ({"crop": (0.5, float("nan"))}, r"crop=\(0.5, nan\)"),
        ({"ratio": (0, 0)}, r"ratio=\(0, 0\)"),
        ({"ratio": (2, 1)}, r"ratio=\(2, 1\)"),
        ({"ratio": (-1, 1)}, r"ratio=\(-1, 1\)"),
        ({"ratio": (1, float("inf"))}, r"ratio=\(1, inf\)"),
        ({"ratio": ("1", "2")}, r"ratio=\('1', '2'\)"),
        ({"ratio": None}, "ratio=None"),
        ({"augment": "randaugment"}, "augment='randaugment'"),
        ({"crop": (0.9, 0.5)}, r"crop=\(0.9, 0.5\)"),
        ({"captions": "fist"}, "Did you mean 'first'"),
        ({"captions": 1.5}, "captions=1.5"),
        ({"block": 0}, "block=0"),
        ({"window": 0}, "window=0"),
        ({"threads": 0}, "threads=0"),
        ({"workers": -1}, "workers=-1"),
        ({"bad_limit": 2}, "bad_limit=2"),
        ({"bad_limit": "none"}, "bad_limit='none'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, told):
    with pytest.raises(ConfigurationError, match=told):
        Feed(**settings)


def test_feed_comes_back_from_its_config():
    feed = Feed(crop=(0.2, 0.9), augment=flipkit.Augment(), captions=0.3, block=8, workers=2)
    copy = Feed.from_config(feed.get_config())
    assert copy.get_config() == feed.get_config()
    data = flipkit.CaptionedShapes(size=8, image_size=32)
    a, b = (f.open(data, Model(Bytes()), 4).batch(1) for f in (feed, copy))
    assert same(a, b)
