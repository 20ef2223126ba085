"""Pictures show the pixels they should."""

import numpy as np

from carvana_tf.evaluation import pictures

PHOTO = np.full((40, 60, 3), 90, np.uint8)
TRUTH = np.zeros((40, 60), bool)
TRUTH[10:30, 10:40] = True


def has(picture, colour):
    return bool((picture == colour).all(-1).any())


def test_error_map_colours_missed_and_extra_pixels():
    prediction = TRUTH.copy()
    prediction[12, 12] = False
    prediction[35, 50] = True
    picture = pictures.error_map(TRUTH, prediction, 40, 60)
    assert tuple(picture[12, 12]) == pictures.MISSED
    assert tuple(picture[35, 50]) == pictures.EXTRA
    assert (picture[15, 15] == 255).all() and (picture[0, 0] == 0).all()
    coloured = (picture != picture[..., :1]).any(-1)
    assert coloured.sum() == 2


def test_a_single_wrong_pixel_survives_shrinking():
    prediction = TRUTH.copy()
    prediction[35, 50] = True
    assert has(pictures.error_map(TRUTH, prediction, 10, 15), pictures.EXTRA)
    assert not has(pictures.error_map(TRUTH, TRUTH, 10, 15), pictures.EXTRA)


def test_outline_draws_the_border_and_leaves_the_photo_alone():
    drawn = pictures.outline(PHOTO, TRUTH, pictures.TRUTH, 3)
    assert tuple(drawn[10, 25]) == pictures.TRUTH
    assert (drawn[20, 25] == 90).all()
    assert (PHOTO == 90).all()


def test_the_edge_of_the_photo_is_no_border():
    full = pictures.outline(PHOTO, np.ones((40, 60), bool), pictures.TRUTH)
    assert (full == PHOTO).all()


def test_side_by_side_has_the_width_asked_for_whatever_the_photo():
    for shape in ((40, 60), (60, 20), (5, 5)):
        mask = np.ones(shape, bool)
        picture = pictures.side_by_side(np.zeros((*shape, 3), np.uint8), mask, mask, width=300)
        assert picture.shape[1:] == (300, 3) and picture.dtype == np.uint8
    wrong = pictures.side_by_side(PHOTO, TRUTH, ~TRUTH, title="a_1")
    labels = pictures._LABEL_HEIGHT
    assert has(wrong[labels:], pictures.MISSED) and has(wrong[labels:], pictures.EXTRA)
    right = pictures.side_by_side(PHOTO, TRUTH, TRUTH, title="a_1")
    assert not has(right[labels:], pictures.MISSED)


def test_classes_of_errors_are_the_colours_of_the_error_map():
    prediction = TRUTH.copy()
    prediction[12, 12], prediction[35, 50] = False, True
    classes = pictures.error_classes(TRUTH, prediction, 40, 60)
    coloured = np.array(pictures.ERRORS, np.uint8)[classes]
    assert (coloured == pictures.error_map(TRUTH, prediction, 40, 60)).all()


def test_outlines_of_both_masks_and_a_montage():
    classes = pictures.outline_classes(TRUTH, np.roll(TRUTH, 8, 1))
    assert set(np.unique(classes)) == {0, 1, 2} and classes[20, 30] == 0
    panels = [np.full((4, 6, 3), value, np.uint8) for value in (1, 2, 3, 4)]
    sheet = pictures.montage(panels)
    assert sheet.shape == (12, 16, 3)
    assert [sheet[y, x, 0] for y in (0, -1) for x in (0, -1)] == [1, 2, 3, 4]


def test_busiest_window_holds_the_most_wrong_pixels():
    wrong = np.zeros((40, 60), bool)
    wrong[30:36, 45:55] = True
    wrong[2, 2] = True
    rows, columns = pictures.busiest(wrong, 20, 30)
    assert wrong[rows, columns].sum() == 60
    assert (rows.stop - rows.start, columns.stop - columns.start) == (10, 15)
