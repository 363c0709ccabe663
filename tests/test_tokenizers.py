import gzip
import html
import itertools
import json
import pathlib
import pickle
import random
import sys

import numpy as np
import pytest
import sentencepiece

from flipkit import errors, registry, tokenizers
from flipkit.datasets import CaptionedShapes

GOLDEN = pathlib.Path(__file__).parents[2] / "shared" / "golden" / "tokenizers"

CAPTIONS = [
    "A red circle above a blue square.",
    "two small green triangles",
    "a Yellow star, left of a red circle",
    "un cercle très foncé",
    "红色的圆",
    "a large blue triangle below the yellow stars",
] * 3

ODD = ["", " ", "\x00\ufeff\u200b", "\ud83d", "[PAD] <end_of_text>", "ﬁne ＣＡＴ", "x" * 5000, "né"]

MERGES = ["#version: 0.2", "t h", "th e</w>", "c a", "ca t</w>", "a t</w>", "Ã ©</w>"]


@pytest.fixture
def golden():
    """captions, and a reader of the reference ids"""
    if not GOLDEN.exists():
        pytest.skip(f"no reference ids in {GOLDEN}")
    return lambda name: json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.fixture
def merges(tmp_path):
    path = tmp_path / "merges.txt"
    path.write_text("\n".join(MERGES) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def word_piece():
    tokenizer = tokenizers.WordPiece()
    tokenizer.train(CAPTIONS, vocab=120)
    return tokenizer


@pytest.fixture(scope="module")
def sentence_piece():
    tokenizer = tokenizers.SentencePiece(add_eos=True)
    tokenizer.train(CAPTIONS, vocab=120)
    return tokenizer


@pytest.fixture(params=["bytes", "word_piece", "clip_bpe", "sentence_piece"])
def tokenizer(request, word_piece, merges, sentence_piece):
    return {
        "sentence_piece": sentence_piece,
        "bytes": tokenizers.Bytes(),
        "word_piece": word_piece,
        "clip_bpe": tokenizers.ClipBPE(merges),
    }[request.param]


def same(actual, expected, captions):
    """Fails with the captions whose ids differ."""
    differ = [c for c, a, e in zip(captions, actual.tolist(), expected, strict=True) if a != e]
    assert not differ


# The contract, for every tokenizer


def test_ids_are_padded_int32_rows_below_vocab(tokenizer):
    rows = tokenizer(CAPTIONS + ODD, 12)
    assert rows.shape == (len(CAPTIONS + ODD), 12)
    assert rows.dtype == np.int32
    assert rows.min() >= 0
    assert rows.max() < tokenizer.vocab
    assert tokenizer([], 7).shape == (0, 7)


def test_a_text_gives_the_same_ids_in_any_company(tokenizer):
    together = tokenizer(CAPTIONS, 16)
    for row, caption in zip(together, CAPTIONS, strict=True):
        np.testing.assert_array_equal(tokenizer([caption], 16)[0], row)


def test_cutting_keeps_the_beginning_and_the_end_id(tokenizer):
    long, short = tokenizer(CAPTIONS[:4], 64), tokenizer(CAPTIONS[:4], 4)
    ends = tokenizer.end is not None
    np.testing.assert_array_equal(long[:, : 4 - ends], short[:, : 4 - ends])
    if ends:
        assert (short[:, -1] == tokenizer.end).all()
        assert ((long == tokenizer.end).sum(axis=1) == 1).all()


def test_spellings_put_together_are_the_words_of_a_text(tokenizer):
    if isinstance(tokenizer, tokenizers.Bytes):
        with pytest.raises(
            errors.ConfigurationError, match=r"Bytes doesn't cut .* pieces of words"
        ):
            tokenizer.spellings()
        return
    told, words, unfinished = tokenizer.spellings(), [], False
    assert len(told) == tokenizer.vocab
    for letters, goes_on, goes_on_after in (told[i] for i in tokenizer.encode("the red cat")):
        if goes_on or unfinished:
            words[-1] += letters
        else:
            words.append(letters)
        unfinished = goes_on_after
    assert words == ["the", "red", "cat"]
    if tokenizer.end is not None:
        assert not told[tokenizer.end][1]


def test_workers_copies_give_the_same_ids(tokenizer):
    expected = tokenizer(CAPTIONS + ODD, 16)  # whatever is built lazily is built by now
    copy = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(copy(CAPTIONS + ODD, 16), expected)


def test_config_and_assets_make_an_equal_tokenizer(tokenizer, tmp_path):
    config = json.loads(json.dumps(registry.serialize(tokenizer)))
    assert len(json.dumps(config)) < 1000  # no vocabulary in it
    assets = tmp_path / "assets"
    assets.mkdir()
    tokenizer.save_assets(assets)
    copy = registry.deserialize(config)
    copy.load_assets(assets)
    assert copy.get_config() == tokenizer.get_config()
    assert (copy.vocab, copy.start, copy.end) == (
        tokenizer.vocab,
        tokenizer.start,
        tokenizer.end,
    )
    np.testing.assert_array_equal(copy(CAPTIONS + ODD, 16), tokenizer(CAPTIONS + ODD, 16))


def test_one_text_in_place_of_a_list_is_refused(tokenizer):
    with pytest.raises(errors.ConfigurationError, match="Expected a list of texts"):
        tokenizer("a cat", 8)


def test_a_megabyte_of_text_is_cut_like_any_other(tokenizer):
    assert tokenizer(["a cat. " * 150_000], 8).shape == (1, 8)


def test_names_and_objects_are_understood():
    assert isinstance(tokenizers.get("bytes"), tokenizers.Bytes)
    assert isinstance(tokenizers.get("wordpiece"), tokenizers.WordPiece)
    assert isinstance(tokenizers.get(tokenizers.ClipBPE), tokenizers.ClipBPE)
    assert tokenizers.get(None) is None
    with pytest.raises(errors.ConfigurationError, match="tokenizers"):
        tokenizers.get(3)


def test_a_third_party_tokenizer_is_one_method():
    class Letters(tokenizers.Tokenizer):
        vocab = 27

        def encode(self, text):
            return [ord(letter) - 96 for letter in text.lower() if "a" <= letter <= "z"]

    np.testing.assert_array_equal(Letters()(["a b!", "cdefg"], 3), [[1, 2, 0], [3, 4, 5]])


# Bytes


def test_bytes_can_be_read_back():
    text = "né 红 🙂"
    [row] = tokenizers.Bytes()([text], 40)
    ids = row[row > 0]
    assert (ids[0], ids[-1]) == (1, 2)
    assert bytes((ids[1:-1] - 3).tolist()).decode() == text


def test_bytes_have_nothing_to_train():
    with pytest.raises(errors.ConfigurationError, match="nothing to train"):
        tokenizers.Bytes().train(CAPTIONS, vocab=100)


def test_clips_byte_pairs_are_not_trained_but_read():
    told = "set `merges` to the file bpe_simple_vocab_16e6.txt.gz"
    with pytest.raises(errors.ConfigurationError, match=told):
        tokenizers.ClipBPE().train(CAPTIONS, vocab=49_408)


# WordPiece


@pytest.mark.parametrize("add_cls", [False, True])
def test_word_pieces_are_those_of_the_official_flip(golden, add_cls):
    captions, reference = golden("captions")["captions"], golden("bert_wordpiece")
    tokenizer = tokenizers.WordPiece(GOLDEN / "vocab" / "vocab_bert_base.txt", add_cls=add_cls)
    assert tokenizer.vocab == reference["vocab_lines"] == 30_522
    expected = reference["ids_with_cls_token_option" if add_cls else "ids"]
    same(tokenizer(captions, 32), expected, captions)


def test_word_pieces_survive_their_file(word_piece, tmp_path):
    word_piece.save_assets(tmp_path)
    path = tmp_path / "vocabulary.txt"
    from_file = tokenizers.WordPiece(path)
    expected = from_file(CAPTIONS, 16)
    assets = tmp_path / "assets"
    assets.mkdir()
    from_file.save_assets(assets)
    path.unlink()

    copy = registry.deserialize(registry.serialize(from_file))
    with pytest.raises(errors.ConfigurationError, match=r"vocabulary\.txt"):
        copy(CAPTIONS, 16)
    copy.load_assets(assets)
    np.testing.assert_array_equal(copy(CAPTIONS, 16), expected)


def test_training_gives_the_same_vocabulary_whatever_the_order():
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefgé你", k=5)) for _ in range(100)]
    captions = [" ".join(generator.choices(words, k=8)) for _ in range(300)]
    vocabularies = set()
    for _ in range(5):  # each with other hash seeds in the library
        generator.shuffle(captions)
        tokenizer = tokenizers.WordPiece()
        tokenizer.train(iter(captions), vocab=90)
        vocabularies.add(tuple(tokenizer.lines))
    assert len(vocabularies) == 1


def test_training_covers_what_it_saw(word_piece):
    assert word_piece.trained
    assert word_piece.lines[:4] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    assert len(set(word_piece.lines)) == word_piece.vocab <= 120
    assert not (word_piece(CAPTIONS, 64) == 1).any()
    assert (word_piece(["ω"], 4) == [[1, 0, 0, 0]]).all()


@pytest.mark.parametrize("vocab", [4, 5, 10, 30])
def test_training_never_exceeds_the_vocabulary_asked_for(vocab):
    tokenizer = tokenizers.WordPiece()
    tokenizer.train(CAPTIONS, vocab)
    assert 4 <= tokenizer.vocab <= vocab
    assert tokenizer(CAPTIONS + ODD, 8).max() < vocab


def test_pieces_are_the_longest_matches(word_piece):
    ids = {piece: i for i, piece in enumerate(word_piece.lines)}

    def longest_first(word):
        pieces, start = [], 0
        while start < len(word):
            for end in range(len(word), start, -1):
                piece = ("##" if start else "") + word[start:end]
                if piece in ids:
                    break
            else:
                return [ids["[UNK]"]]
            pieces.append(ids[piece])
            start = end
        return pieces

    generator = random.Random(0)
    for _ in range(300):
        word = "".join(generator.choices("abcdeglrstuwq", k=generator.randint(1, 12)))
        assert list(word_piece.pieces(word)) == longest_first(word)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Straße ™ … ﬁ", "strasse tm . . . fi"),
        ("Café\u0301\u00a0ＮＯＮ", "cafe non"),
        ("so\u00adft zero\u200bwidth", "soft zerowidth"),
        ("tab\tnul\0bell\x07", "tab nul bell"),
        ("don't_stop", "don ' t _ stop"),
        ("红cat圆", "红 cat 圆"),
        ("one\u2028line", "one\u2028line"),
        ("half \ud83d", "half \ufffd"),
    ],
)
def test_words_are_folded_and_isolated(text, words):
    assert list(tokenizers.WordPiece().words(text)) == words.split(" ")


def test_case_and_accents_stay_if_asked():
    words = tokenizers.WordPiece(lowercase=False).words("Un Café\x07, ﬁ")
    assert list(words) == ["Un", "Café", ",", "ﬁ"]


def test_a_word_of_more_than_100_bytes_is_unknown(word_piece):
    assert list(word_piece.pieces("é" * 51)) == [1]
    assert list(word_piece.pieces("a" * 101)) == [1]
    assert list(word_piece.pieces("a" * 100)) != [1]


def test_cls_and_sep_stand_round_a_text_if_asked(word_piece, tmp_path):
    word_piece.save_assets(tmp_path)
    path = tmp_path / "vocabulary.txt"
    both = tokenizers.WordPiece(path, add_cls=True, add_sep=True)
    assert (both.start, both.end, word_piece.start, word_piece.end) == (2, 3, None, None)
    [plain], [row] = word_piece(["red star"], 16), both(["red star"], 18)
    kept = plain[plain > 0]
    np.testing.assert_array_equal(row[row > 0], [2, *kept, 3])
    assert both(["red star circle"], 3).tolist()[0][::2] == [2, 3]


def test_what_is_missing_is_told(tmp_path):
    tokenizer = tokenizers.WordPiece()
    assert not tokenizer.trained
    assert tokenizer.vocab is None
    with pytest.raises(errors.ConfigurationError, match="call `train"):
        tokenizer(["a"], 8)
    with pytest.raises(errors.ConfigurationError, match=r"merges.*bpe_simple_vocab_16e6"):
        tokenizers.ClipBPE()(["a"], 8)
    for cls, name in ((tokenizers.WordPiece, "vocabulary"), (tokenizers.ClipBPE, "merges")):
        path = tmp_path / "nowhere.txt"
        tokenizer = cls(path)  # a recipe may be written on another machine
        with pytest.raises(
            errors.ConfigurationError, match=rf"{name}=.*nowhere\.txt.*set `{name}`"
        ):
            tokenizer(["a"], 8)


@pytest.mark.parametrize("lines", [["[UNK]", "a"], ["[PAD]", "a"], [""]])
def test_a_vocabulary_without_the_needed_pieces_is_refused(tmp_path, lines):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(lines))
    with pytest.raises(errors.ConfigurationError, match=r"\[PAD\] on its first line"):
        tokenizers.WordPiece(path)(["a"], 4)


def test_a_given_vocabulary_is_not_trained_over(word_piece, tmp_path):
    word_piece.save_assets(tmp_path)
    tokenizer = tokenizers.WordPiece(tmp_path / "vocabulary.txt")
    with pytest.raises(errors.ConfigurationError, match="has a vocabulary"):
        tokenizer.train(CAPTIONS, vocab=50)


@pytest.mark.parametrize(
    "kind", [tokenizers.WordPiece, tokenizers.ClipBPE, tokenizers.SentencePiece]
)
def test_an_untrained_tokenizer_has_no_spellings(kind):
    with pytest.raises(errors.ConfigurationError, match="is untrained: set `"):
        kind().spellings()


def test_an_untrained_tokenizer_saves_nothing_and_can_be_trained_later(tmp_path):
    tokenizer = tokenizers.WordPiece()
    tokenizer.save_assets(tmp_path)
    tokenizer.load_assets(tmp_path)
    assert not list(tmp_path.iterdir())
    tokenizer.train(CAPTIONS, vocab=60)
    assert tokenizer.trained


def test_training_again_replaces_the_vocabulary(word_piece):
    before = word_piece(CAPTIONS, 8)
    word_piece.train(["zebra quartz"] * 9, vocab=40)
    assert "zebra" in word_piece.lines
    assert not np.array_equal(word_piece(CAPTIONS, 8), before)


# CLIP


@pytest.mark.parametrize("length", [77, 32])
def test_byte_pairs_are_those_of_clip(golden, length):
    pytest.importorskip("ftfy", reason="open_clip's ids need ftfy")
    captions, reference = golden("captions")["captions"], golden("clip_bpe")
    tokenizer = tokenizers.ClipBPE(GOLDEN / "vocab" / "bpe_simple_vocab_16e6.txt.gz")
    assert (tokenizer.vocab, tokenizer.start, tokenizer.end) == (49_408, 49_406, 49_407)
    same(tokenizer(captions, length), reference[f"ids{length}"], captions)


def test_clips_assets_hold_what_clip_uses(golden, tmp_path):
    tokenizer = tokenizers.ClipBPE(GOLDEN / "vocab" / "bpe_simple_vocab_16e6.txt.gz")
    tokenizer.save_assets(tmp_path)
    assert (tmp_path / "merges.txt").stat().st_size < 1_000_000
    copy = tokenizers.ClipBPE()
    copy.load_assets(tmp_path)
    assert copy.vocab == 49_408
    np.testing.assert_array_equal(copy(CAPTIONS, 77), tokenizer(CAPTIONS, 77))


def test_ids_without_ftfy_differ_only_for_unusual_text(merges, monkeypatch):
    with_ftfy = tokenizers.ClipBPE(merges)(CAPTIONS, 32)
    monkeypatch.setattr(tokenizers.clip_bpe, "ftfy", None)
    without = tokenizers.ClipBPE(merges)
    np.testing.assert_array_equal(without(CAPTIONS, 32), with_ftfy)
    assert without(ODD, 8).shape == (len(ODD), 8)


def test_pairs_are_merged_in_the_order_of_the_file(merges):
    tokenizer = tokenizers.ClipBPE(merges)
    ranks = {tuple(line.split()): i for i, line in enumerate(MERGES[1:])}
    pieces = {i: piece for piece, i in tokenizer._ids.items()}

    def merge(word):
        parts = [*word[:-1], word[-1] + "</w>"]
        while True:
            pairs = [pair for pair in itertools.pairwise(parts) if pair in ranks]
            if not pairs:
                return parts
            best, i = min(pairs, key=ranks.get), 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == best:
                    parts[i : i + 2] = ["".join(best)]
                i += 1

    generator = random.Random(0)
    for _ in range(300):
        word = "".join(generator.choices("cathe", k=generator.randint(1, 9)))
        assert [pieces[i] for i in tokenizer.pieces(word)] == merge(word)
    assert [pieces[i] for i in tokenizer.pieces("é")] == ["Ã©</w>"]


PARTS = [
    *("a", "B", " ", "\n", "\r\n", "\u2028", "'s", "'re", "'", "é", "Ã©", "â€™", "<", "&amp;amp;"),
    *("<start_of_text>", "<end_of_text>", "start_of", "&#10;", "&#10", "&l", "t;", "Σ", "1", "!"),
    *("\ud83d", "\x1b[0m", "\x0b", "“", "ﬁ", "Ａ", "\xa0", "à ", "İ", "红", "&"),
]


@pytest.mark.parametrize("has_ftfy", [True, False])
@pytest.mark.parametrize("size", [16, 2**10])
def test_words_cut_on_demand_are_those_of_the_whole_text(merges, monkeypatch, has_ftfy, size):
    if has_ftfy:
        pytest.importorskip("ftfy", reason="open_clip's words need ftfy")
    else:
        monkeypatch.setattr(tokenizers.clip_bpe, "ftfy", None)
    monkeypatch.setattr(tokenizers.clip_bpe, "_SLICE", size)
    tokenizer, rng = tokenizers.ClipBPE(merges), random.Random(0)
    for _ in range(300):
        text = "".join(rng.choices(PARTS, k=rng.randrange(60)))
        whole = tokenizers.clip_bpe.ftfy.fix_text(text) if has_ftfy else text
        whole = html.unescape(html.unescape(whole.encode("utf-8", "replace").decode()))
        whole = tokenizers.clip_bpe._CLIP_WORDS.pre_tokenize_str(" ".join(whole.split()).lower())
        assert list(tokenizer.words(text)) == [word for word, _ in whole], text


@pytest.mark.parametrize("text", ["a cat. " * 150_000, "né cát\n" * 150_000, "a!" * 500_000])
def test_of_a_megabyte_clip_looks_at_the_beginning_alone(merges, monkeypatch, text):
    looked = {"words": 0, "mended": 0}

    class Counting:
        def pre_tokenize_str(self, part, pattern=tokenizers.clip_bpe._CLIP_WORDS):
            looked["words"] += len(part)
            return pattern.pre_tokenize_str(part)

    class Mending:
        def fix_text(self, line, **options):
            looked["mended"] += len(line)
            return line

    monkeypatch.setattr(tokenizers.clip_bpe, "_CLIP_WORDS", Counting())
    monkeypatch.setattr(tokenizers.clip_bpe, "ftfy", Mending())
    assert tokenizers.ClipBPE(merges)([text], 77).shape == (1, 77)
    assert 0 < looked["words"] < 10_000
    lines = "\n" in text  # ftfy mends a line as a whole
    assert looked["mended"] < 10_000 if lines else looked["mended"] == len(text)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("hello\nworld\n", "line 2 .*'world'"),
        ("#version: 0.2\na b\nc d e\n", "line 3 .*'c d e'"),
        ("#version: 0.2\na b\n\nab c\n", "line 3 .*''"),
        ("#version: 0.2\nhello world\n", "line 2 .*'hello world'"),
    ],
)
def test_what_is_no_file_of_merges_is_told_its_line(tmp_path, lines, told):
    path = tmp_path / "merges.txt"
    path.write_text(lines)
    with pytest.raises(errors.ConfigurationError, match=f"Received: {told}.*bpe_simple_vocab"):
        tokenizers.ClipBPE(path)(["a cat"], 8)


def test_a_byte_order_mark_is_no_part_of_a_vocabulary(merges, word_piece, tmp_path):
    word_piece.save_assets(tmp_path)
    for path, kind in (
        (merges, tokenizers.ClipBPE),
        (tmp_path / "vocabulary.txt", tokenizers.WordPiece),
    ):
        marked = tmp_path / f"marked_{path.name}"
        marked.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
        assert kind(marked).lines == kind(path).lines
        np.testing.assert_array_equal(kind(marked)(CAPTIONS, 16), kind(path)(CAPTIONS, 16))
        marked.write_bytes(path.read_text(encoding="utf-8").encode("utf-16"))
        with pytest.raises(errors.ConfigurationError, match=r"UTF-16, to be saved .*: set `"):
            kind(marked)(["a"], 8)


def test_gzipped_merges_are_read(merges, tmp_path):
    zipped = tmp_path / "merges.txt.gz"
    zipped.write_bytes(gzip.compress(merges.read_bytes()))
    plain, other = tokenizers.ClipBPE(merges), tokenizers.ClipBPE(zipped)
    assert plain.vocab == 512 + 6 + 2
    np.testing.assert_array_equal(plain(CAPTIONS, 32), other(CAPTIONS, 32))
    zipped.write_bytes(zipped.read_bytes()[:-20])
    with pytest.raises(errors.ConfigurationError, match="Can't read merges"):
        tokenizers.ClipBPE(zipped)(["a"], 8)


def test_clip_cleans_before_it_cuts(merges):
    tokenizer = tokenizers.ClipBPE(merges)
    assert list(tokenizer.words(" The&amp;amp;CAT's\n 12")) == ["the", "&", "cat", "'s", "1", "2"]


# SentencePiece


@pytest.fixture(scope="module")
def captions():
    data = CaptionedShapes(size=400, image_size=32)
    return [text for i in range(len(data)) for text in data.texts(i)]


@pytest.fixture(scope="module")
def learned(captions, tmp_path_factory):
    """A model learned from captions, and its file."""
    tokenizer = tokenizers.SentencePiece(clean="canonicalize", add_eos=True, pad=1)
    tokenizer.train(captions, vocab=200)
    folder = tmp_path_factory.mktemp("learned")
    tokenizer.save_assets(folder)
    return tokenizer, folder / "sentencepiece.model"


def test_sentence_pieces_are_those_of_the_library(captions, learned):
    plain = tokenizers.SentencePiece(learned[1])
    library = sentencepiece.SentencePieceProcessor(model_file=str(learned[1]))
    assert plain.vocab == library.get_piece_size() <= 200
    assert len(captions) > 300
    for text in [*captions, *CAPTIONS, "Ｆｕｌｌ  width, “quotes” …"]:
        ids = library.encode(text)
        [row] = plain([text], 64)
        assert row[: len(ids)].tolist() == ids
        assert not row[len(ids) :].any()


def test_siglip_reads_texts_without_punctuation_up_to_an_end_that_also_pads(learned):
    tokenizer, path = learned
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    text = "A RED_circle, left of:\n two  (small) stars!"
    ids = library.encode("a red circle left of two small stars")
    [row] = tokenizer([text], 40)
    assert row.tolist() == ids + [1] * (40 - len(ids))
    [row] = tokenizer([text], 5)
    assert row.tolist() == [*ids[:4], 1]  # the end stays when the text is cut
    lower = tokenizers.SentencePiece(path, clean="lower")
    [row] = lower(["A RED, circle"], 40)
    ids = library.encode("a red, circle")
    assert row[: len(ids)].tolist() == ids


def test_pieces_are_learned_alike_from_captions_in_any_order(captions, learned):
    again = tokenizers.SentencePiece(clean="canonicalize")
    again.train(reversed(captions), vocab=200)
    assert again.proto == learned[0].proto


def test_a_flip_carries_its_sentence_pieces_to_a_fresh_process(tiny, captions, tmp_path, fresh):
    tokenizer = tokenizers.SentencePiece(add_eos=True)
    tokenizer.train(captions, vocab=150)
    model = tiny(text={"vocab": 150, "length": 16}, tokenizer=tokenizer)
    model.build()
    model.save(tmp_path / "model.keras")
    code = f"""
import flipkit
model = flipkit.load_model({str(tmp_path / "model.keras")!r})
print(model.tokenizer({captions[:20]!r}, 16).tolist())
"""
    assert json.loads(fresh(code)) == tokenizer(captions[:20], 16).tolist()


def test_what_a_sentence_piece_model_lacks_is_told(learned, tmp_path, monkeypatch):
    _, path = learned
    with pytest.raises(errors.ConfigurationError, match="Did you mean 'canonicalize'"):
        tokenizers.SentencePiece(clean="canonicalise")
    with pytest.raises(errors.ConfigurationError, match="call `train"):
        tokenizers.SentencePiece()(["a"], 8)
    with pytest.raises(errors.ConfigurationError, match="has no <s>"):
        tokenizers.SentencePiece(path, add_bos=True)(["a"], 8)
    with pytest.raises(errors.ConfigurationError, match="`pad` to be one of"):
        tokenizers.SentencePiece(path, pad=5000)(["a"], 8)
    with pytest.raises(errors.ConfigurationError, match="can't learn 5 pieces"):
        tokenizers.SentencePiece().train(CAPTIONS, vocab=5)
    with pytest.raises(errors.ConfigurationError, match="can't learn 50 pieces"):
        tokenizers.SentencePiece().train([], vocab=50)
    other = tmp_path / "other.model"
    for content in (b"", b"no model"):
        other.write_bytes(content)
        with pytest.raises(errors.ConfigurationError, match=r"Not a model .*other\.model"):
            tokenizers.SentencePiece(other)(["a"], 8)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(errors.ConfigurationError, match=r"pip install 'flipkit\[sentencepiece\]'"):
        tokenizers.SentencePiece(path)(["a"], 8)


def test_a_given_sentence_piece_model_is_not_trained_over(learned):
    with pytest.raises(errors.ConfigurationError, match="has a model"):
        tokenizers.SentencePiece(learned[1]).train(CAPTIONS, vocab=50)
