from pipelines.training.assembly import speak_plainly
from tests.pipelines.training.base_parts import words


def test_a_template_of_its_own_stays_where_it_shows_pictures() -> None:
    own = "{{ bos_token }}{% for message in messages %}<image>{% endfor %}"
    assert speak_plainly(words(), own, "<image>") == own
    silent = own.removeprefix("{{ bos_token }}")
    assert speak_plainly(words(), silent, "<image>") == own
    assert "ASSISTANT" in speak_plainly(words(), "{{ messages[0]['content'] }}", "<image>")
