from types import SimpleNamespace

import pytest

from threestudio_eeg.compat import text_encoder_process


@pytest.mark.parametrize("spawn", [True, False])
def test_prompts_are_embedded_here(fake, spawn):
    class PromptProcessor:
        def __init__(self):
            self.cfg = SimpleNamespace(spawn=spawn)

        def prepare_text_embeddings(self):
            return "child" if self.cfg.spawn else "here"

    class Derived(PromptProcessor):
        pass

    for name in ("threestudio", "threestudio.models", "threestudio.models.prompt_processors"):
        fake(name)
    fake(text_encoder_process.BASE, PromptProcessor=PromptProcessor)
    text_encoder_process.apply("cpu")
    assert Derived().prepare_text_embeddings() == "here"
