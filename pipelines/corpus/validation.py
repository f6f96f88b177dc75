"""One sample under the rules: texts, image, and a form that survives being written."""

from __future__ import annotations

import json

from pipelines.corpus.images import check_image
from pipelines.corpus.recipe import Limits
from pipelines.corpus.samples import BadSampleError, Evidence, Fault, Raw, Sample, check_messages, record_of, sample_key


def check(raw: Raw, limits: Limits) -> Sample | Fault:
    """Turn a raw record into a sample, or into the reason why not."""
    try:
        return _checked(raw, limits)
    except BadSampleError as bad:
        return Fault(reason=bad.reason, origin=raw.origin, detail=bad.detail, evidence=evidence_of(raw))


def evidence_of(raw: Raw) -> Evidence:
    """Image and record as they came, for the quarantine."""
    record = {"record": json.dumps(record_of(raw)).encode()}
    return record if raw.image is None else {"image": raw.image} | record


def _checked(raw: Raw, limits: Limits) -> Sample:
    check_messages(raw.messages)
    extension = None if raw.image is None else check_image(raw.image, limits)
    key = sample_key(raw.position, raw.identity)
    sample = Sample(key=key, image=raw.image, extension=extension, record=record_of(raw))
    try:
        sample.members()
    except UnicodeEncodeError as error:
        # JSON may spell half a surrogate pair, which no tokenizer takes.
        raise BadSampleError("bad_record", f"a text is not valid Unicode: {error.reason}") from error
    return sample
