"""Three questions about a held-out picture, put to a running service through the stock OpenAI client."""

from __future__ import annotations

import base64

from openai import DefaultHttpxClient, OpenAI

from cluster.progress import Progress
from pipelines.serving.serve import Endpoint
from qmop.vtcbench.dimensions import FAMILIES
from qmop.vtcbench.draws import Draws
from qmop.vtcbench.painting import encode_png, paint
from qmop.vtcbench.scene import caption

_SEED, _QUESTIONS = 99, 3


def ask_about_a_picture(endpoint: Endpoint, progress: Progress) -> None:
    """Draw a picture that no training seed draws, ask, and print question, answer, truth and branch weights."""
    draws = Draws(_SEED, "held out")
    scene, first = FAMILIES[-1].build(draws, "held_out")
    asked = [first, *(turn for family in FAMILIES[:-1] if (turn := family.ask(scene, draws)) is not None)][:_QUESTIONS]
    url = "data:image/png;base64," + base64.b64encode(encode_png(paint(scene, draws))).decode()
    progress.say(f"held-out picture: {caption(scene)}")
    direct = DefaultHttpxClient(trust_env=False)  # the service is on this machine: no proxy
    client = OpenAI(base_url=endpoint.url, api_key=endpoint.api_key or "none", timeout=60, http_client=direct)
    for turn in asked:
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": turn.question}]
        reply = client.chat.completions.create(
            model=endpoint.model,
            messages=[{"role": "user", "content": parts}],  # type: ignore[list-item, misc]
            max_tokens=8,
        )
        facts = (reply.model_extra or {}).get("qmop", {})
        weights = facts.get("branch_weights") or {}
        branches = ", ".join(f"{name} {weight:.2f}" for name, weight in weights.items())
        progress.say(
            f"Q: {turn.question}  A: {reply.choices[0].message.content}  (truth: {turn.answer}; "
            f"{facts.get('visual_tokens')} of {facts.get('visual_tokens_original')} visual tokens; {branches})"
        )
