"""Goes through a listing as a prediction does, without photos: digest, check, and all parts.

python benchmarks/ours/listing.py PARQUET COUNT

Where the listing does not exist, it is written, and nothing else is done.
"""

import sys
from pathlib import Path

GROUP = 100_000  # rows

if __name__ == "__main__":
    path, count = Path(sys.argv[1]), int(sys.argv[2])
    if not path.exists():
        import pyarrow
        from pyarrow.parquet import ParquetWriter

        from carvana_tf.files import atomic_path

        schema = pyarrow.schema([("path", pyarrow.string())])
        with atomic_path(path) as temporary, ParquetWriter(temporary, schema) as writer:
            for start in range(0, count, GROUP):
                rows = range(start, min(start + GROUP, count))
                names = [f"s3://bucket/photos/{i // 10_000:05d}/{i:012x}_01.jpg" for i in rows]
                writer.write_table(pyarrow.table([names], schema=schema))
        sys.exit()

    from carvana_tf.data import listing, storage

    storage.check = lambda url: None  # no photo is read
    photos = listing.Listing(path)
    photos.digest()
    found = photos.check()
    parts = listing.parts(photos, 10_000, lambda number: True)
    if not found == count == sum(len(rows) for _, rows in parts):
        sys.exit(f"{found} rows, expected {count}")
