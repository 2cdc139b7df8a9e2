"""Encoder calls that interning equal captions saves, within shards of several sizes and over everything.

Measured on the authors' released captions of PKU-MMD II, which do not come with this repository: give their file or
put it where the tests look for it. The time is that of the `classical` encoder over all captions.
"""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

from c2vl_manifests.recipe_loading import load_recipe
from c2vl_pipeline import engines
from timing import PROCESSOR, SHARED, Parser, compare

SHARD_SAMPLES = (64, 256, 512, 1024)


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--captions", type=Path, default=SHARED / "captions" / "pkuv2_language.zip")
    options = parser.parse_args()
    if not (path := options.captions).is_file():
        print(f"skipped: {path}, the authors' captions, is absent")
        sys.exit(0)
    with zipfile.ZipFile(path) as archive:
        released = json.loads(archive.read(next(n for n in archive.namelist() if n.endswith(".json"))))
    # by recording, as the index has them: the samples of one video lie in one shard
    samples = [released[name] for name in sorted(released, key=lambda n: (n[:12], n))]
    total = sum(map(len, samples))
    facts: dict[str, float] = {"samples": len(samples), "captions": total}
    for size in (*SHARD_SAMPLES, len(samples)):
        shards = [samples[start : start + size] for start in range(0, len(samples), size)]
        calls = sum(len({text for sample in shard for text in sample}) for shard in shards)
        name = "all_in_one" if size == len(samples) else f"shards_of_{size}"
        facts[f"calls_saved_by_{name}"] = 1 - calls / total
    encoder = engines.load(load_recipe("heuristic").pipeline.embed.engine)
    texts = [text for sample in samples[:2048] for text in sample]

    def encode(some: list[str]) -> None:
        for start in range(0, len(some), 256):
            encoder.encode_texts(some[start : start + 256])

    def interned() -> None:
        for start in range(0, len(texts), 512 * 16):
            encode(list(dict.fromkeys(texts[start : start + 512 * 16])))

    name = f"classical encoder, {len(texts):,} captions, shards of 512"
    compare(name, interned, lambda: encode(texts), options.pairs, judged_by=PROCESSOR, **facts)


if __name__ == "__main__":
    main()
