from __future__ import annotations

import io
import tracemalloc
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from raycl.beton import (
    BetonError,
    BytesField,
    Field,
    FloatField,
    IntField,
    JSONField,
    NDArrayField,
    RGBImageField,
    TorchTensorField,
    decode_jpeg,
)
from raycl.beton.fields import JPG, RAW, make_field


def round_trip(field: Field, value: Any) -> Any:
    cell, payload = field.encode(value)
    stored = np.zeros(1, [("cell", field.member)])
    stored["cell"][0] = cell
    return field.decode(stored["cell"][0], memoryview(b"" if payload is None else bytes(payload)))


def picture(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=2).astype(np.uint8)


def jpeg(mode: str, height: int = 30, width: int = 40, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(height, width)).convert(mode).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize("value", [0.1, -3, np.float32(0.5), np.int8(4), float("inf")])
def test_float(value: Any) -> None:
    assert round_trip(FloatField(), value) == float(value)


@pytest.mark.parametrize("value", [0, -(2**63), 2**63 - 1, np.uint8(200), torch.tensor(7), True])
def test_int(value: Any) -> None:
    assert round_trip(IntField(), value) == int(value)


@pytest.mark.parametrize("value", [b"", b"abc", np.arange(300).astype(np.uint8)[::2]])
def test_bytes(value: Any) -> None:
    read = round_trip(BytesField(), value)
    assert (read.dtype, bytes(read)) == (np.uint8, bytes(value))


@pytest.mark.parametrize("value", [None, 3, "", "été \0", [1, [2.5]], {"a": {"b": [None, True]}}])
def test_json(value: Any) -> None:
    assert round_trip(JSONField(), value) == value


@pytest.mark.parametrize("dtype", ["u1", "<i2", ">f4", "f8", "c8", "?", "S3", "M8[ms]"])
@pytest.mark.parametrize("shape", [(1,), (3, 2), (1, 2, 1, 3)])
def test_ndarray(dtype: str, shape: tuple[int, ...]) -> None:
    field = NDArrayField(dtype, shape)
    value = np.arange(np.prod(shape)).astype(dtype).reshape(shape)

    read = round_trip(field, np.asfortranarray(value))

    assert read.dtype == value.dtype
    np.testing.assert_array_equal(read, value)
    assert make_field(field.type_id, field.arguments().ljust(1024, b"\0")) == field


def test_tensors_come_back_as_arrays() -> None:
    field = TorchTensorField("float32", (2, 2))
    read = round_trip(field, torch.eye(2))

    assert isinstance(read, np.ndarray)
    np.testing.assert_array_equal(read, np.eye(2))
    restored = make_field(6, field.arguments().ljust(1024, b"\0"))
    assert type(restored) is TorchTensorField
    assert restored == field


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (FloatField(), "1.5", "expected a number, got '1.5'"),
        (FloatField(), None, "expected a number, got NoneType None"),
        (IntField(), 1.0, "expected an integer, got float 1.0"),
        (IntField(), 2**63, "does not fit into 64 bits"),
        (BytesField(), "text", "expected bytes or a 1-D uint8 array, got str 'text'"),
        (BytesField(), np.zeros((2, 2), np.uint8), r"uint8 and shape \(2, 2\)"),
        (JSONField(), {1, 2}, "not JSON: Object of type set"),
        (
            NDArrayField("f4", (2,)),
            np.zeros(2),
            r"float32 and shape \(2,\), got ndarray of float64",
        ),
        (NDArrayField("f4", (2,)), np.zeros(3, "f4"), r"got ndarray of float32 and shape \(3,\)"),
        (NDArrayField("f4", (2,)), [[1], [2, 3]], "no array can be made of list"),
        (TorchTensorField("f4", (1,)), torch.ones(1, requires_grad=True), "no array can be made"),
        (RGBImageField(), np.zeros((4, 4), np.uint8), r"expected an \(H, W, 3\) uint8 image"),
        (RGBImageField(), np.zeros((4, 4, 3)), "got ndarray of float64"),
        (RGBImageField(), np.zeros((0, 4, 3), np.uint8), "expected an"),
        (RGBImageField(), np.zeros((70000, 1, 3), np.uint8), "at most 65535 .* set max_resolution"),
        (RGBImageField(), jpeg("RGB"), "can only be stored in mode jpg, not raw"),
        (RGBImageField("jpg"), b"GIF89a", "not a whole JPEG"),
        (RGBImageField("jpg"), jpeg("CMYK"), "a JPEG in CMYK colours; convert it to RGB"),
    ],
)
def test_values_that_do_not_fit_are_refused(field: Field, value: Any, message: str) -> None:
    with pytest.raises(BetonError, match=message):
        field.encode(value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RGBImageField("png"), "mode must be raw, jpg"),  # type: ignore[arg-type]
        (lambda: RGBImageField(quality=0), "quality must be from 1 to 100"),
        (lambda: RGBImageField(compress_probability=1.5), "from 0 to 1, not 1.5"),
        (lambda: RGBImageField(max_resolution=0), "at least 1"),
        (lambda: NDArrayField("f4", ()), "1 to 32 axes"),
        (lambda: NDArrayField("f4", (3, 0)), "none empty"),
        (lambda: NDArrayField("O", (3,)), "arrays of object cannot be stored"),
        (lambda: NDArrayField([("x", "f4")], (3,)), "cannot be stored"),
        (lambda: NDArrayField(torch.float32, (3,)), "not a NumPy dtype"),
        (lambda: make_field(255, b""), r"custom type \(255\)"),
        (lambda: make_field(9, b""), "unknown type 9"),
        (lambda: make_field(4, bytes(1024)), "description of its arrays is damaged"),
    ],
)
def test_impossible_fields_are_refused(make: Any, message: str) -> None:
    with pytest.raises(BetonError, match=message):
        make()


def test_raw_images_are_exact() -> None:
    image = picture(20, 30)[::-1, ::2]
    np.testing.assert_array_equal(round_trip(RGBImageField(), image), image)


def test_quality_decides_size_and_error() -> None:
    image = picture(64, 80)
    payloads, errors = [], []
    for quality in (30, 95):
        field = RGBImageField("jpg", quality=quality)
        payloads.append(len(field.encode(image)[1]))
        errors.append(np.abs(round_trip(field, image).astype(int) - image).mean())

    assert payloads[0] < payloads[1] < image.nbytes
    assert errors[0] > errors[1]
    assert errors[1] < 4


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_files_are_stored_untouched(mode: str) -> None:
    data = jpeg(mode)
    cell, payload = RGBImageField("jpg", max_resolution=40).encode(data)

    assert (cell, bytes(payload)) == ((JPG, 40, 30, 0), data)
    read = round_trip(RGBImageField("jpg"), data)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_allclose(read.astype(int), expected, atol=2)


def test_larger_jpeg_files_are_scaled_down() -> None:
    field = RGBImageField("jpg", max_resolution=64)
    cell, payload = field.encode(jpeg("RGB", 200, 300, quality=95))

    assert cell == (JPG, 64, 42, 0)
    assert simplejpeg.decode_jpeg_header(payload)[:2] == (42, 64)


def test_smart_mode_compresses_above_its_threshold() -> None:
    small, large = picture(10, 10), picture(50, 50)
    field = RGBImageField("smart", smart_threshold=small.nbytes)

    assert [field.encode(image)[0][0] for image in (small, large)] == [RAW, JPG]
    assert RGBImageField("smart").encode(large)[0][0] == RAW


def test_proportion_is_met_and_repeatable() -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (400, 4, 4, 3)).astype(np.uint8)
    field = RGBImageField("proportion", compress_probability=0.3)
    modes = np.array([field.encode(image)[0][0] for image in images])

    # Four standard deviations of a binomial share.
    assert abs((modes == JPG).mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 400)
    assert [field.encode(image)[0][0] for image in images] == modes.tolist()


@pytest.mark.parametrize(("height", "width"), [(120, 77), (77, 120), (640, 480), (3, 400)])
@pytest.mark.parametrize("limit", [64, 75])
def test_shrinking_averages_areas(height: int, width: int, limit: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)

    read = round_trip(RGBImageField(max_resolution=limit), image)

    # Overlaps of every target pixel with every source pixel, as dense matrices.
    def overlaps(side: int, target: int) -> np.ndarray:
        edges = np.linspace(0, side, target + 1)
        pixels = np.arange(side)
        upper = np.minimum(edges[1:, None], pixels + 1)
        return np.clip(upper - np.maximum(edges[:-1, None], pixels), 0, None) * target / side

    targets = [max(1, side * limit // max(height, width)) for side in (height, width)]
    assert read.shape == (*targets, 3)
    rows, columns = overlaps(height, targets[0]), overlaps(width, targets[1])
    expected = np.einsum("ah,hwc,bw->abc", rows, image, columns, optimize=True)
    np.testing.assert_allclose(read, expected, atol=0.51)


def test_images_within_the_limit_keep_their_pixels() -> None:
    image = picture(30, 40)
    np.testing.assert_array_equal(round_trip(RGBImageField(max_resolution=40), image), image)


@pytest.mark.parametrize("keep", [0, 4, 100, -200, -2])
def test_cut_jpegs_do_not_decode(keep: int) -> None:
    with pytest.raises(BetonError, match="not a whole JPEG"):
        decode_jpeg(jpeg("RGB", 100, 100)[:keep])


@pytest.mark.parametrize(
    ("field", "cell", "payload", "message"),
    [
        (RGBImageField(), (RAW, 4, 3, 0), bytes(35), "3 x 4 pixels takes 36 bytes, and 35"),
        (RGBImageField(), (7, 4, 3, 0), bytes(36), "unknown image mode 7"),
        (RGBImageField(), (JPG, 40, 31, 0), jpeg("RGB"), "30 x 40 pixels, and the metadata say 31"),
        (NDArrayField("f4", (3,)), 0, bytes(8), "takes 12 bytes, and 8 are stored"),
        (JSONField(), (0, 3), b"{]\0", "not JSON"),
        (JSONField(), (0, 2), b"\xff\0", "not JSON"),
        (JSONField(), (0, 4), b"1\x002\0", "not JSON"),
        (JSONField(), (0, 0), b"", "not JSON"),
        (JSONField(), (0, 99999), b"[" * 99999, "not JSON"),
    ],
)
def test_damaged_payloads_are_refused(
    field: Field, cell: Any, payload: bytes, message: str
) -> None:
    stored = np.zeros(1, [("cell", field.member)])
    stored["cell"][0] = cell

    with pytest.raises(BetonError, match=message):
        field.decode(stored["cell"][0], memoryview(payload))


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (b"[" * 760, "is damaged"),
        (b'[["", "|O8"]]', "arrays of object cannot be stored"),
        (b'[["", [["x", "O"]]]]', "not a plain dtype"),
        (b'[["", {"names": ["x"], "formats": ["f4"], "itemsize": 2000000000}]]', "plain dtype"),
        (b'[["", "f4,f4"]]', "'f4,f4' is not a plain dtype"),
        (b'[["", null]]', "None is not a plain dtype"),
        (b'[["x", "<f4"]]', "is damaged"),
        (b'[["", "|V2147483647"]]', "a page has at most"),
        (b'[["", "|S0"]]', "cannot be stored"),
        (b'[["", "<f3"]]', "is not a NumPy dtype"),
        (b'[["", "<M8[_]"]]', "is not a NumPy dtype"),
        (b'{"a": "b"}', "is damaged"),
        (b"\xff\xfe", "is damaged"),
    ],
)
def test_damaged_descriptions_of_arrays_are_refused(description: bytes, message: str) -> None:
    arguments = bytearray(NDArrayField("f4", (2, 3)).arguments().ljust(1024, b"\0"))
    arguments[256:264] = len(description).to_bytes(8, "little")
    arguments[264:] = description.ljust(760, b"\0")[:760]
    with pytest.raises(BetonError, match=message):
        make_field(4, bytes(arguments))


@pytest.mark.parametrize("shape", [(1 << 32, 1 << 32), (1 << 62, 4), (1 << 63, 1), (1 << 29, 1)])
def test_arrays_larger_than_any_page_are_refused(shape: tuple[int, ...]) -> None:
    # The product of the first two is 0 in 64 bits.
    arguments = bytearray(NDArrayField("f8", (1, 1)).arguments().ljust(1024, b"\0"))
    for axis, side in enumerate(shape):
        arguments[8 * axis : 8 * axis + 8] = side.to_bytes(8, "little")
    with pytest.raises(BetonError, match="a page has at most 2147483648 bytes"):
        make_field(4, bytes(arguments))


@pytest.mark.parametrize("least", [(0, 0), (1, 1), (25, 38), (26, 38), (50, 75), (51, 75), (99, 1)])
def test_jpegs_decode_at_the_least_sufficient_size(least: tuple[int, int]) -> None:
    data, memory = jpeg("RGB", 100, 150, quality=95), np.zeros(100 * 150 * 3, np.uint8)
    enough = [n for n in (8, 4, 2, 1) if -(-100 // n) >= least[0] and -(-150 // n) >= least[1]]
    scaled = enough[0] if any(least) else 1

    image = decode_jpeg(data, least, memory)

    assert image.shape == (-(-100 // scaled), -(-150 // scaled), 3)
    assert np.shares_memory(image, memory)
    np.testing.assert_array_equal(image, decode_jpeg(data, least))


def claiming(data: bytes, height: int, width: int) -> bytes:
    """The JPEG with another size in its header."""
    at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) + 5
    return data[:at] + height.to_bytes(2, "big") + width.to_bytes(2, "big") + data[at + 4 :]


def test_a_header_alone_takes_no_memory() -> None:
    gigantic = claiming(jpeg("RGB"), 65500, 65500)
    cells = np.zeros(2, RGBImageField.member)
    cells[0], cells[1] = (JPG, 40, 30, 0), (JPG, 65500, 65500, 0)
    with pytest.raises(BetonError, match="30 x 40 pixels, and the metadata say 65500 x 65500"):
        RGBImageField().decode(cells[1], memoryview(jpeg("RGB")))
    tracemalloc.start()
    try:
        for cell, message in zip(
            cells, ("and the metadata say 30 x 40", "do not fit"), strict=True
        ):
            with pytest.raises(BetonError, match=f"65500 x 65500 pixels,? {message}"):
                RGBImageField().decode(cell, memoryview(gigantic))
        with pytest.raises(BetonError, match="do not fit into"):
            decode_jpeg(gigantic)
        with pytest.raises(BetonError, match="do not fit into"):
            RGBImageField("jpg").encode(gigantic)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_the_emptiest_image_is_not_too_short_for_its_size() -> None:
    for options in ({}, {"progressive": True}, {"optimize": True}):
        buffer = io.BytesIO()
        Image.new("L", (4000, 3000)).save(buffer, "JPEG", quality=1, **options)
        assert decode_jpeg(buffer.getvalue()).shape == (3000, 4000, 3)


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = jpeg("L", 1500, 1500, progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(BetonError, match="more than 500 scans"):
        decode_jpeg(data[:-2] + last * 501 + b"\xff\xd9")
