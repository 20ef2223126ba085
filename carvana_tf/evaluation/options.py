"""The group of flags of the pages of an evaluation; none of it needs Keras."""

import dataclasses

from carvana_tf.evaluation import gallery
from carvana_tf.flags import option


@dataclasses.dataclass(frozen=True)
class PageOptions:
    """What the report shows next to the scores."""

    photo_dir: str | None = option(
        None,
        "Photos for the pictures, in or outside --dataset_dir; 'train' by default.",
        key="photos",
    )
    runs: tuple[str, ...] = option(
        (), "Folders of the trainings, or their log.csv, whose learning curves the report shows."
    )
    gallery_photos: int = option(
        gallery.PHOTOS,
        "Photos with pictures in the report: a third each of the worst, the best and random ones. "
        "0 draws none.",
        lower=0,
    )
    gallery_size: int = option(
        gallery.SIDE, "Longer side of these pictures in pixels, at most.", lower=64
    )
    threads: int = option(4, "Threads that read and measure masks, and draw pictures.", lower=1)
