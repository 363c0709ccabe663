import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features

from flipkit import errors, preprocessing, registry

WHITE = [255, 255, 255]
HEIC = b"\0\0\0\x18ftypheic" + bytes(90)  # a header


def picture(height=48, width=64, seed=0):
    """A smooth coloured picture, uint8 (height, width, 3)."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), "uint8")
    return np.array(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image, kind="JPEG", **options):
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_claiming(width, height):
    """A PNG whose header is well-formed and whose pixels aren't there."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\x0aIDAT" + bytes(14)


def jpeg_claiming(width, height):
    data = bytearray(encoded(picture()))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def animation(first, second):
    frames = [Image.fromarray(np.full((8, 8, 3), c, "uint8")) for c in (first, second)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


# Decoding


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_files_come_back_exactly(kind):
    image = picture()
    decoded = preprocessing.decode(encoded(image, kind))
    np.testing.assert_array_equal(decoded, image)
    assert decoded.dtype == np.uint8
    assert decoded.flags.writeable


@pytest.mark.parametrize("kind", [kind for kind in preprocessing.FORMATS if kind != "JPEG"])
def test_every_format_that_is_named_is_decoded(kind):
    if kind in ("AVIF", "WEBP") and not features.check(kind.lower()):
        pytest.skip(f"this Pillow was built without {kind}")
    decoded = preprocessing.decode(encoded(picture(), kind)).astype(int)
    assert np.abs(decoded - picture()).mean() < (30 if kind == "GIF" else 4)


def test_two_jpegs_in_one_file_are_the_first():
    second = [Image.fromarray(picture(seed=1))]
    data = encoded(picture(), "MPO", save_all=True, append_images=second)
    assert b"MPF" in data
    np.testing.assert_array_equal(
        preprocessing.decode(data), preprocessing.decode(encoded(picture()))
    )


def test_a_format_that_pillow_lacks_leaves_the_others_alone_and_is_told(monkeypatch):
    monkeypatch.setattr(preprocessing.decoding, "FORMATS", ("JPEG", "HEIF", "PNG"))
    preprocessing.decoding._formats.cache_clear()
    try:
        assert preprocessing.decode(encoded(picture(), "PNG")).shape == (48, 64, 3)
        told = r"none of JPEG, PNG \(this Pillow was built without HEIF\)$"
        with pytest.raises(errors.BadSample, match=told):
            preprocessing.decode(HEIC)
    finally:
        preprocessing.decoding._formats.cache_clear()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_is_decoded_as_pillow_does(options):
    data = encoded(picture(), **options)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(preprocessing.decode(data), expected)


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (300, 1000), (224, 224), (100, 90)])
def test_scaled_decoding_never_goes_below_the_size_wanted(size):
    data = encoded(picture(*size))
    decoded = preprocessing.decode(data, min_size=224)
    assert min(decoded.shape[:2]) >= min(224, *size)
    assert decoded.shape[0] <= size[0]
    full = preprocessing.decode(data)
    assert full.shape == (*size, 3)
    small = [preprocessing.centre_crop(image, 32).astype(int) for image in (decoded, full)]
    assert np.abs(small[0] - small[1]).mean() < 1


def test_large_jpegs_are_decoded_smaller():
    assert preprocessing.decode(encoded(picture(960, 1280)), 224).shape == (240, 320, 3)


def test_grey_becomes_three_equal_channels():
    grey = picture()[..., 0]
    for data in (grey, grey[..., None], encoded(grey, "PNG"), encoded(grey, "JPEG")):
        decoded = preprocessing.decode(data)
        assert decoded.shape == (48, 64, 3)
        assert (decoded == decoded[..., :1]).all()


def test_sixteen_bits_keep_the_upper_eight():
    values = np.arange(0, 65536, 64, dtype="uint16").reshape(32, 32)
    for kind in ("PNG", "TIFF"):
        decoded = preprocessing.decode(encoded(Image.fromarray(values), kind))
        np.testing.assert_array_equal(decoded[..., 0], values >> 8)


def test_what_is_transparent_becomes_white():
    pixels = np.zeros((2, 2, 4), "uint8")
    pixels[0, 0] = [10, 20, 30, 255]
    pixels[1, 1] = [0, 0, 0, 128]
    grey_alpha = Image.fromarray(pixels).convert("LA")
    for data in (encoded(pixels, "PNG"), pixels, encoded(grey_alpha, "PNG")):
        decoded = preprocessing.decode(data)
        assert decoded[0, 1].tolist() == WHITE
        assert np.ptp(decoded[1, 1]) == 0
        assert abs(int(decoded[1, 1, 0]) - 127) <= 1
    assert preprocessing.decode(pixels)[0, 0].tolist() == [10, 20, 30]


def test_palettes_with_and_without_transparency_are_decoded():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((0, 0), 1)
    decoded = preprocessing.decode(encoded(image, "PNG"))
    assert decoded[0, 0].tolist() == [0, 255, 0]
    assert decoded[1, 1].tolist() == [255, 0, 0]
    for transparency in (0, b"\0\xff"):
        decoded = preprocessing.decode(encoded(image, "PNG", transparency=transparency))
        assert decoded[0, 0].tolist() == [0, 255, 0]
        assert decoded[1, 1].tolist() == WHITE


def test_cmyk_is_converted():
    data = encoded(Image.fromarray(picture()).convert("CMYK"))
    decoded = preprocessing.decode(data)
    assert decoded.shape == (48, 64, 3)
    assert np.abs(decoded.astype(int) - picture()).mean() < 8


def test_of_an_animation_the_first_frame_is_taken():
    assert (preprocessing.decode(animation(200, 10)) == 200).all()


def test_the_smallest_picture_is_one():
    for kind in ("PNG", "JPEG", "GIF"):
        assert preprocessing.decode(encoded(picture(1, 1), kind), 224).shape == (1, 1, 3)


def test_exif_orientation_is_not_applied_and_broken_exif_does_no_harm():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    for kind in ("JPEG", "PNG"):
        data = encoded(picture(), kind, exif=exif)
        assert preprocessing.decode(data).shape == (48, 64, 3)
    broken = encoded(picture(), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    np.testing.assert_array_equal(
        preprocessing.decode(broken), preprocessing.decode(encoded(picture()))
    )


def test_a_harmless_fault_in_a_jpeg_is_forgiven():
    data = encoded(picture())
    assert preprocessing.decode(data + b"trailing garbage").shape == (48, 64, 3)
    before_end = data[:-2] + b"\0\0\0" + data[-2:]
    assert preprocessing.decode(before_end).shape == (48, 64, 3)


BAD = {
    "0 bytes": b"",
    "text": b"<html>404 Not Found</html>",
    "truncated JPEG": encoded(picture(480, 640))[:3000],
    "JPEG without its end": encoded(picture(480, 640))[:-50],
    "JPEG header only": encoded(picture())[:20],
    "two bytes": b"\xff\xd8",
    "truncated PNG": encoded(picture(), "PNG")[:-500],
    "truncated GIF": encoded(picture(), "GIF")[:500],
    "truncated WebP": encoded(picture(), "WEBP")[:-100],
    "PNG bomb": png_claiming(50_000, 50_000),
    "PNG of no pixels": png_claiming(0, 10),
    "small PNG without pixels": png_claiming(10, 10),
    "JPEG bomb": jpeg_claiming(65_000, 65_000),
    "truncated AVIF": encoded(picture(), "AVIF")[:-100] if features.check("avif") else b"avif",
    "EPS, which would start Ghostscript": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    ),
    "float array": np.zeros((4, 4, 3), "float32"),
    "flat array": np.zeros(12, "uint8"),
    "empty array": np.zeros((0, 4, 3), "uint8"),
    "array of five channels": np.zeros((4, 4, 5), "uint8"),
    "nothing": None,
    "a number": 7,
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_bad_images_are_bad_samples_with_a_reason(data):
    with pytest.raises(
        errors.BadSample, match=r"^(Can't decode the image: |Expected an image) *\w"
    ):
        preprocessing.decode(data, min_size=32)


@pytest.mark.parametrize("data", [b"<html>403</html>", bytes(1000), b"<svg/>", HEIC])
def test_what_is_no_picture_is_told_which_formats_are_read(data):
    with pytest.raises(errors.BadSample, match=r": none of JPEG, PNG, .*PPM"):
        preprocessing.decode(data)


def test_any_damage_is_either_decoded_or_a_bad_sample():
    rng = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"):
        whole = np.frombuffer(encoded(picture(16, 16), kind), "uint8")
        for _ in range(60):
            data = whole.copy()
            data[rng.integers(len(data), size=3)] = rng.integers(256, size=3)
            try:
                decoded = preprocessing.decode(data.tobytes(), 8, max_pixels=10_000)
            except errors.BadSample:
                continue
            assert decoded.dtype == np.uint8
            assert decoded.shape[2] == 3


def test_reasons_of_equal_faults_are_equal():
    reasons = set()
    for _ in range(3):
        with pytest.raises(errors.BadSample) as caught:
            preprocessing.decode(b"not an image at all")
        reasons.add(str(caught.value))
    assert len(reasons) == 1


def test_size_is_checked_before_decoding():
    for kind in ("JPEG", "PNG"):
        data = encoded(picture(100, 100), kind)
        assert preprocessing.decode(data, max_pixels=10_000).shape == (100, 100, 3)
        with pytest.raises(errors.BadSample, match="100 x 100 is more than 9999 pixels"):
            preprocessing.decode(data, max_pixels=9_999)


# Cropping


@pytest.mark.parametrize(
    ("width", "height"), [(640, 480), (480, 640), (1, 1), (1000, 1), (1, 1000), (7, 5)]
)
@pytest.mark.parametrize("area", [(0.08, 1.0), (0.5, 1.0), (1.0, 1.0)])
def test_crops_lie_within_the_picture(width, height, area):
    rng = np.random.default_rng(0)
    for _ in range(200):
        left, top, w, h = preprocessing.random_box(width, height, rng, area, (3 / 4, 4 / 3))
        assert 0 <= left < left + w <= width
        assert 0 <= top < top + h <= height


def test_crops_have_the_areas_ratios_and_places_asked_for():
    rng = np.random.default_rng(0)
    boxes = [
        preprocessing.random_box(400, 400, rng, (0.2, 0.5), (3 / 4, 4 / 3)) for _ in range(2000)
    ]
    left, top, w, h = np.array(boxes).T
    area = w * h / 400**2
    assert area.min() > 0.198
    assert area.max() < 0.502
    assert abs(area.mean() - 0.35) < 0.01  # evenly between 0.2 and 0.5
    ratio = np.log(w / h)
    assert abs(ratio.mean()) < 0.02
    assert np.abs(ratio).max() < np.log(4 / 3) + 0.01
    for start, side in ((left, w), (top, h)):
        place = start / (400 - side)
        assert (place.min(), place.max()) == (0, 1)
        assert abs(place.mean() - 0.5) < 0.02


def test_a_picture_no_crop_fits_is_cut_in_the_middle():
    rng = np.random.default_rng(0)
    assert preprocessing.random_box(1000, 30, rng, (0.5, 1), (3 / 4, 4 / 3)) == (480, 0, 40, 30)
    assert preprocessing.random_box(30, 1000, rng, (0.5, 1), (3 / 4, 4 / 3)) == (0, 480, 30, 40)
    assert preprocessing.random_box(9, 1, rng, (1, 1), (0.1, 0.2)) == (4, 0, 1, 1)


def test_random_crop_is_a_function_of_the_generator():
    image = picture()

    def crops(seed):
        rng = np.random.default_rng(seed)
        return np.stack([preprocessing.random_resized_crop(image, 16, rng) for _ in range(3)])

    assert crops(0).shape == (3, 16, 16, 3)
    np.testing.assert_array_equal(crops(0), crops(0))
    assert not np.array_equal(crops(0), crops(1))


def test_random_crop_of_everything_is_a_resize():
    image = picture(32, 32)
    crop = preprocessing.random_resized_crop(
        image, 16, np.random.default_rng(0), area=(1, 1), ratio=(1, 1)
    )
    np.testing.assert_array_equal(crop, preprocessing.resize(image, 16))


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (96, 96), (24, 33), (24, 35), (8, 9)])
def test_centre_crop_is_resizing_the_short_side_and_cutting_between_pixels(size):
    image = picture(*size)
    h, w = (side * 24 // min(size) for side in size)
    resized = np.asarray(Image.fromarray(image).resize((w, h), Image.Resampling.BICUBIC), int)
    top, left = round((h - 24) / 2), round((w - 24) / 2)
    expected = resized[top : top + 24, left : left + 24]
    assert np.abs(preprocessing.centre_crop(image, 24) - expected).max() <= 1


def test_centre_crop_stays_within_pictures_of_any_shape():
    for height in (1, 7, 97, 1001):
        for width in range(1, 120):
            image = np.zeros((height, width, 3), "uint8")
            for size in (3, 17, (5, 9)):
                assert preprocessing.centre_crop(image, size, "nearest").size


def test_centre_crop_takes_a_height_and_a_width():
    image = np.zeros((40, 40, 3), "uint8")
    image[10:30] = 255
    assert (preprocessing.centre_crop(image, (8, 16))[1:-1] == 255).all()
    assert preprocessing.centre_crop(image, (8, 16)).shape == (8, 16, 3)


def test_shrinking_is_antialiased():
    board = np.indices((64, 64)).sum(0) % 2 * np.uint8(255)
    image = np.repeat(board[..., None], 3, axis=2).astype("uint8")
    for interpolation in ("bilinear", "bicubic", "lanczos"):
        small = preprocessing.resize(image, 16, interpolation)
        assert np.abs(small.astype(int) - 127).max() < 12


def test_unknown_interpolation_answers_with_the_nearest():
    for attempt in (
        lambda: preprocessing.resize(picture(), 8, "bicubik"),
        lambda: preprocessing.Preprocessing(interpolation="bicubik"),
    ):
        with pytest.raises(errors.UnknownName, match="Did you mean 'bicubic'"):
            attempt()


# Preprocessing


STATISTICS = [
    ({}, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ({"mean": "half"}, [0.5] * 3, [0.5] * 3),
    ({"mean": (0.1, 0.2, 0.3), "std": [1, 2, 3]}, [0.1, 0.2, 0.3], [1, 2, 3]),
    ({"mean": (0.1, 0.2, 0.3), "std": "half"}, [0.1, 0.2, 0.3], [0.5] * 3),
]


@pytest.mark.parametrize(("options", "mean", "std"), STATISTICS)
def test_normalise_equals_numpy_for_images_and_for_patches(options, mean, std):
    x = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), "uint8")
    expected = (x / 255.0 - mean) / std
    patches = x.reshape(2, 2, 4, 2, 4, 3).swapaxes(2, 3).reshape(2, 4, 48)
    expected_patches = expected.reshape(2, 2, 4, 2, 4, 3).swapaxes(2, 3).reshape(2, 4, 48)
    normalise = preprocessing.Preprocessing(**options).normalise
    for given, wanted in ((x, expected), (patches, expected_patches)):
        actual = np.asarray(normalise(given))
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-6)


def test_normalise_refuses_what_is_not_three_channels():
    with pytest.raises(errors.ConfigurationError, match="Expected 3 channels"):
        preprocessing.Preprocessing().normalise(np.zeros((2, 4, 4), "uint8"))


def test_prepare_takes_whatever_holds_a_picture(tmp_path):
    image = picture()
    path = tmp_path / "a.png"
    path.write_bytes(encoded(image, "PNG"))
    images = [image, encoded(image, "PNG"), path, str(path), Image.fromarray(image)]
    prepared = preprocessing.Preprocessing().prepare(images, 24)
    assert prepared.shape == (5, 24, 24, 3)
    assert prepared.dtype == np.uint8
    np.testing.assert_array_equal(prepared, np.stack([preprocessing.centre_crop(image, 24)] * 5))
    assert preprocessing.Preprocessing().prepare([], 24).shape == (0, 24, 24, 3)
    assert preprocessing.Preprocessing().prepare(np.stack([image] * 2), (8, 12)).shape[1:3] == (
        8,
        12,
    )
    with pytest.raises(errors.BadSample):
        preprocessing.Preprocessing().prepare([b"no picture"], 24)


@pytest.mark.parametrize(
    "component",
    [
        preprocessing.Preprocessing(),
        preprocessing.Preprocessing((0.1, 0.2, 0.3), (1, 2, 3), interpolation="bilinear"),
        preprocessing.Augment(),
        preprocessing.Augment(scale=(0.5, 1.2), sketch=0.7, hue=0.1),
    ],
)
def test_config_makes_an_equal_component(component):
    copy = registry.deserialize(json.loads(json.dumps(registry.serialize(component))))
    assert type(copy) is type(component)
    assert registry.serialize(copy) == registry.serialize(component)


def test_get_understands_names_of_statistics():
    assert preprocessing.get(None).mean == "imagenet"
    assert preprocessing.get("clip").mean == "clip"
    component = preprocessing.Preprocessing("half")
    assert preprocessing.get(component) is component


@pytest.mark.parametrize(
    "options",
    [
        {"mean": (0.5, 0.5, 0.5)},
        {"mean": (0.5, 0.5)},
        {"std": (1, 1, 0)},
        {"std": (1, float("nan"), 1)},
        {"mean": "imagenett"},
    ],
)
def test_statistics_are_checked(options):
    with pytest.raises(errors.ConfigurationError):
        preprocessing.Preprocessing(**options)


# Augmenting

ALL = {
    "sketch": 0.5,
    "scale": (0.5, 1.5),
    "ratio": 1.3,
    "degrees": 20.0,
    "shift": 0.2,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "grayscale": 0.2,
}


def test_augment_off_returns_the_picture_and_draws_nothing():
    image, rng = picture(), np.random.default_rng(0)
    state = rng.bit_generator.state
    assert preprocessing.Augment()(image, rng) is image
    assert rng.bit_generator.state == state


@pytest.mark.parametrize("name", ALL)
def test_each_augmentation_alone_keeps_shape_and_input_and_is_repeatable(name):
    augment = preprocessing.Augment(**{name: ALL[name]})
    image = picture(20, 30)
    before, changed = image.copy(), 0
    for seed in range(20):
        out = augment(image, np.random.default_rng(seed))
        assert out.shape == image.shape
        assert out.dtype == np.uint8
        np.testing.assert_array_equal(out, augment(image, np.random.default_rng(seed)))
        changed += not np.array_equal(out, image)
    np.testing.assert_array_equal(image, before)
    assert changed


def test_augment_takes_read_only_pictures_of_one_pixel():
    image = picture(1, 1)
    image.flags.writeable = False
    for seed in range(20):
        assert preprocessing.Augment(**ALL)(image, np.random.default_rng(seed)).shape == (1, 1, 3)


def test_grayscale_is_pillows_luma():
    grey = preprocessing.grayscale(picture(), np.random.default_rng(0))
    expected = np.asarray(Image.fromarray(picture()).convert("L"), int)
    assert np.abs(grey - expected[..., None]).max() <= 1


def test_jitter_of_no_strength_changes_nothing():
    out = preprocessing.colour_jitter(picture(), np.random.default_rng(0))
    assert np.abs(out.astype(int) - picture()).max() <= 1  # rounding


class Highest:
    """A generator that draws the upper bound."""

    @staticmethod
    def uniform(low, high, size=None):
        return high if size is None else np.full(size, high)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_jitter_equals_torchvisions_formula(name):
    image = picture().astype("float64")
    luma = image @ [0.299, 0.587, 0.114]
    # Each blends the picture with black, with its mean grey, or with its greys.
    other = {"brightness": 0, "contrast": luma.mean(), "saturation": luma[..., None]}[name]
    expected = np.clip(1.4 * image - 0.4 * other, 0, 255)
    out = preprocessing.colour_jitter(picture(), Highest, **{name: 0.4})
    assert np.abs(out - expected).max() < 0.6


def test_hue_keeps_greys_and_the_brightness_of_each_pixel():
    rng = np.random.default_rng(0)
    grey = np.repeat(picture()[..., :1], 3, axis=2)
    assert np.abs(preprocessing.colour_jitter(grey, rng, hue=0.5).astype(int) - grey).max() <= 1
    pale = (picture() // 4 + 96).astype("uint8")  # stays within 0 and 255
    turned = preprocessing.colour_jitter(pale, rng, hue=0.5)
    luma = [0.299, 0.587, 0.114]
    assert np.abs(turned @ luma - pale @ luma).max() < 1
    assert np.abs(turned.astype(int) - pale).mean() > 3


def test_hue_of_a_third_of_the_circle_turns_red_to_green_or_blue():
    red = np.full((1, 1, 3), [160, 60, 60], "uint8")
    [[turned]] = preprocessing.colour_jitter(red, Highest, hue=1 / 3)
    assert turned.argmax() in (1, 2)


def test_affine_zooms_out_on_the_colour_of_the_border():
    image = np.zeros((40, 40, 3), "uint8")
    image[:] = [10, 200, 30]
    image[10:30, 10:30] = 255
    for seed in range(10):
        out = preprocessing.affine(image, np.random.default_rng(seed), scale=(0.3, 0.9))
        assert out[0, 0].tolist() == [10, 200, 30]
        assert 0 < (out == 255).all(-1).sum() <= 400


def test_affine_of_no_strength_changes_nothing():
    out = preprocessing.affine(picture(), np.random.default_rng(0))
    np.testing.assert_array_equal(out, picture())


def test_affine_turns_about_the_centre():
    image = np.zeros((41, 41, 3), "uint8")
    image[20, 20:40] = 255  # a line from the centre to the right
    out = preprocessing.affine(image, Highest, degrees=90)
    assert set(np.nonzero(out[..., 0] > 128)[1]) == {20}  # stands upright
    assert (out[..., 0] > 128).sum() == pytest.approx(20, abs=1)


def test_affine_moves_by_a_share_of_the_picture():
    image = np.zeros((40, 40, 3), "uint8")
    image[10:12, 10:12] = 255
    out = preprocessing.affine(image, Highest, shift=0.25)
    np.testing.assert_array_equal(out[20:22, 20:22], 255)


def test_a_sketch_darkens_edges_and_leaves_white_ground():
    image = np.full((20, 20, 3), 255, "uint8")
    image[5:15, 5:15] = [250, 200, 0]
    for seed in range(5):
        out = preprocessing.sketch(image, np.random.default_rng(seed))
        assert (out[0] == 255).all()
        assert out[5, 10].sum() < out[10, 10].sum()
        assert (out[10, 10].astype(int) >= image[10, 10]).all()  # faded, if anything


@pytest.mark.parametrize(
    "options",
    [{"sketch": 1.5}, {"hue": 0.6}, {"scale": (0, 1)}, {"ratio": 0.5}, {"brightness": -1}],
)
def test_strengths_are_checked(options):
    with pytest.raises(errors.ConfigurationError, match=f"Expected {next(iter(options))}"):
        preprocessing.Augment(**options)


# RandAugment


@pytest.mark.parametrize("name", preprocessing.OPERATIONS)
@pytest.mark.parametrize("level", [-1.0, 0.0, 1.0])
def test_operations_keep_shape_and_kind(name, level):
    image = Image.fromarray(picture(20, 30))
    out = preprocessing.OPERATIONS[name](image, level)
    assert (out.size, out.mode) == (image.size, "RGB")
    alike = {"rotate", "shear_x", "shear_y", "translate_x", "translate_y", "colour", "contrast"}
    if level == 0 and name in alike | {"brightness", "sharpness", "solarize"}:
        np.testing.assert_array_equal(np.asarray(out), np.asarray(image))


def test_operations_move_by_their_level():
    image = np.zeros((40, 40, 3), "uint8")
    image[18:22, 18:22] = 255

    def centre(name, level):
        out = np.asarray(preprocessing.OPERATIONS[name](Image.fromarray(image), level))
        rows, columns = np.nonzero(out[..., 0] > 128)
        return rows.mean() - 19.5, columns.mean() - 19.5

    np.testing.assert_allclose(centre("translate_x", 0.5), (0, -9), atol=0.5)
    np.testing.assert_allclose(centre("translate_y", -0.5), (9, 0), atol=0.5)
    for name in ("rotate", "shear_x", "shear_y"):
        np.testing.assert_allclose(centre(name, 1.0), (0, 0), atol=0.5)
    line = np.zeros((40, 40, 3), "uint8")
    line[20, 20:36] = 255
    turned = np.asarray(preprocessing.OPERATIONS["rotate"](Image.fromarray(line), 1.0))
    row, column = np.argwhere(turned[..., 0] > 60)[[0, -1]].mean(0) - 20
    assert abs(row / column) == pytest.approx(np.tan(np.pi / 6), abs=0.15)


def test_rand_augment_is_a_function_of_its_generator():
    image, augment = picture(32, 32), preprocessing.RandAugment(9, 0.5, chance=1.0)
    outs = [augment(image, np.random.default_rng(seed)) for seed in (0, 0, *range(1, 9))]
    np.testing.assert_array_equal(outs[0], outs[1])
    assert outs[0].shape == image.shape
    assert outs[0].dtype == np.uint8
    assert len({out.tobytes() for out in outs}) > 6
    for still in (preprocessing.RandAugment(chance=0.0), preprocessing.RandAugment(count=0)):
        np.testing.assert_array_equal(still(image, np.random.default_rng(0)), image)


def test_rand_augment_draws_its_strength_about_the_magnitude(monkeypatch):
    seen = []
    monkeypatch.setattr(
        preprocessing.rand_augment,
        "OPERATIONS",
        {"look": lambda image, level: seen.append(level) or image},
    )
    augment = preprocessing.RandAugment(6, 0.5, count=400, chance=1.0)
    augment(picture(8, 8), np.random.default_rng(0))
    levels = np.array(seen)
    assert abs(np.abs(levels).mean() - 0.6) < 0.01
    assert abs(np.abs(levels).std() - 0.05) < 0.01
    assert abs((levels > 0).mean() - 0.5) < 0.1


def test_rand_augment_comes_back_from_its_config_and_checks_it():
    augment = preprocessing.RandAugment(7, 0.1, count=3, chance=0.9)
    config = json.loads(json.dumps(registry.serialize(augment)))
    assert registry.deserialize(config).get_config() == augment.get_config()
    with pytest.raises(errors.ConfigurationError, match="magnitude=11"):
        preprocessing.RandAugment(11)
    with pytest.raises(errors.ConfigurationError, match="chance=2"):
        preprocessing.RandAugment(chance=2)


def test_squashing_resizes_both_sides_whatever_the_shape():
    image = picture(12, 40)
    squash = preprocessing.Preprocessing(resize_mode="squash")
    found = squash.prepare([image], 16)
    np.testing.assert_array_equal(found[0], preprocessing.resize(image, 16))
    assert (
        np.abs(found[0].astype(int) - preprocessing.Preprocessing().prepare([image], 16)).max() > 8
    )
    with pytest.raises(errors.UnknownName, match="squash"):
        preprocessing.Preprocessing(resize_mode="squeeze")
