"""Run lengths against a pixel-by-pixel encoder."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from carvana_tf.errors import UserError
from carvana_tf.masks import rle

MASKS = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=12))


def oracle(mask):
    runs, length = [], 0
    pixels = [bool(pixel) for row in mask for pixel in row]
    for number, pixel in enumerate([*pixels, False], start=1):
        if pixel:
            length += 1
        elif length:
            runs += [number - length, length]
            length = 0
    return " ".join(str(run) for run in runs)


@settings(deadline=None)
@given(MASKS)
def test_agrees_with_a_pixel_by_pixel_encoder_and_decodes_back(mask):
    text = rle.encode_text(mask)
    assert text == oracle(mask)
    np.testing.assert_array_equal(rle.decode(text, *mask.shape), mask)


@settings(deadline=None)
@given(MASKS, st.integers(0, 254))
def test_bits_of_grey_values_are_those_of_the_cut_mask(mask, threshold):
    grey = np.where(mask, threshold + 1, threshold).astype(np.uint8)
    bits = rle.pack(grey, threshold)
    np.testing.assert_array_equal(bits, np.packbits(mask))
    text = rle.to_text(rle.encode_packed(bits, mask.size))
    assert text == oracle(mask)
    np.testing.assert_array_equal(rle.decode_packed(text, *mask.shape), bits)


def test_strips_do_not_show():
    grey = np.random.default_rng(0).integers(0, 256, (701, 377), np.uint8)
    np.testing.assert_array_equal(rle.pack(grey, 99), np.packbits(grey > 99))


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ("0110/0010", "2 2 7 1"),
        ("1100/0110", "1 2 6 2"),
        ("0011/0011", "3 2 7 2"),
        ("0001/1000", "4 2"),
        ("1000/0001", "1 1 8 1"),
        ("1111/1111", "1 8"),
        ("0000/0000", ""),
    ],
)
def test_known_vectors(rows, text):
    mask = np.array([[pixel == "1" for pixel in row] for row in rows.split("/")])
    assert rle.encode_text(mask) == text
    np.testing.assert_array_equal(rle.decode(text, 2, 4), mask)


def test_reads_transposed_memory_in_row_order():
    mask = np.zeros((3, 5), bool)
    mask[1, :] = True
    assert rle.encode_text(np.asfortranarray(mask)) == "6 5"
    assert rle.encode_text(mask.T) == oracle(mask.T)


def test_runs_are_pairs_of_start_and_length():
    runs = rle.encode(np.array([[True, False, True, True]]))
    assert runs.dtype == np.int64
    assert runs.tolist() == [[1, 1], [3, 2]]
    assert rle.encode(np.zeros((2, 2), bool)).shape == (0, 2)


def test_grey_values_are_refused():
    with pytest.raises(ValueError, match="must be bool"):
        rle.encode(np.array([[0, 255]], np.uint8))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1", "pairs"),
        ("1 2 3", "pairs"),
        ("1 x", "no whole number"),
        ("1 1.5", "no whole number"),
        ("-1 2", "no whole number"),
        ("0 1", "outside"),
        ("8 2", "outside"),
        ("9 1", "outside"),
        ("1\xa02", "no whole number"),
        ("1 0", "less than 1"),
        ("1 3 2 2", "overlap"),
        ("5 1 1 1", "out of order"),
        ("99999999999999999999 1", "outside"),
        ("9223372036854775807 9223372036854775807", "outside"),
    ],
)
def test_malformed_text_is_told(text, message):
    with pytest.raises(UserError, match=message) as caught:
        rle.decode(text, 2, 4)
    assert "\n" not in str(caught.value)


@settings(deadline=None)
@given(st.lists(st.integers(0, 14), max_size=6))
def test_decode_accepts_only_masks(numbers):
    """What decodes at all has exactly the pixels the numbers name."""
    try:
        mask = rle.decode(" ".join(map(str, numbers)), 3, 4)
    except UserError:
        return
    named = [p for s, n in zip(numbers[::2], numbers[1::2], strict=True) for p in range(s, s + n)]
    assert (np.flatnonzero(mask) + 1).tolist() == named
