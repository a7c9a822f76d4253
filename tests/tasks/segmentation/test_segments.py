import numpy as np

from metaformer.tasks.segmentation.write_coco import Segment, find_segments


def test_areas_and_boxes() -> None:
    label_map = np.zeros((600, 5), np.uint8)
    label_map[590:595, 1:3] = 2
    label_map[300, 4] = 2
    assert find_segments(label_map, 4) == [
        Segment(0, 2989, (0, 0, 5, 600)),
        Segment(2, 11, (1, 300, 4, 295)),
    ]
