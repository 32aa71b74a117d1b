import openai
import pytest

from tests.engines import llama_cpp


@pytest.mark.world
@pytest.mark.timeout(700)
def test_the_real_server_answers_the_official_client_from_a_model_that_we_made() -> None:
    with llama_cpp.serving("tiny") as engine:
        client = openai.OpenAI(base_url=f"{engine.url}/v1", api_key="none")
        assert [model.id for model in client.models.list()] == ["tiny"]
        said = client.completions.create(model="tiny", prompt="hello", max_tokens=3)
        assert said.usage is not None
        assert said.usage.completion_tokens == 3
