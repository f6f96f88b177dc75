"""One sample under the rules: texts, images, and a form that survives being written."""

from __future__ import annotations

import json

from pipelines.corpus.images import check_image
from pipelines.corpus.recipe import Limits
from pipelines.corpus.samples import (
    BadSampleError,
    Evidence,
    Fault,
    Raw,
    Sample,
    check_count,
    check_messages,
    record_of,
    sample_key,
)


def check(raw: Raw, limits: Limits) -> Sample | Fault:
    """Turn a raw record into a sample, or into the reason why not."""
    try:
        return _checked(raw, limits)
    except BadSampleError as bad:
        return Fault(reason=bad.reason, origin=raw.origin, detail=bad.detail, evidence=evidence_of(raw))


def evidence_of(raw: Raw) -> Evidence:
    """Images and record as they came, for the quarantine."""
    names = ["image"] if len(raw.images) == 1 else [f"image_{number}" for number in range(len(raw.images))]
    return dict(zip(names, raw.images, strict=True)) | {"record": json.dumps(record_of(raw)).encode()}


def _checked(raw: Raw, limits: Limits) -> Sample:
    check_messages(raw.messages)
    check_count(len(raw.images), limits.max_images)
    extensions = tuple(_extension(raw.images, place, limits) for place in range(len(raw.images)))
    key = sample_key(raw.position, raw.identity)
    sample = Sample(key=key, images=raw.images, extensions=extensions, record=record_of(raw))
    try:
        sample.members()
    except UnicodeEncodeError as error:
        # JSON may spell half a surrogate pair, which no tokenizer takes.
        raise BadSampleError("bad_record", f"a text is not valid Unicode: {error.reason}") from error
    return sample


def _extension(images: tuple[bytes, ...], place: int, limits: Limits) -> str:
    """Of one image, checked; of several the detail says which one is bad."""
    try:
        return check_image(images[place], limits)
    except BadSampleError as bad:
        if len(images) == 1:
            raise
        raise BadSampleError(bad.reason, f"image {place + 1} of {len(images)}: {bad.detail}") from bad
