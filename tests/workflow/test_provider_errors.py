"""What providers say and ask for, to the end of a run: filters, sizes, delays and counts that make no sense."""

from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

from perdure import Agent, Fallback, Image, tool
from perdure.activities.providers.scripted import Line
from perdure.errors import ErrorKind, ModelError, RetryableToolError
from perdure.messages import Text, Usage
from perdure.model import ModelConfig, ModelEvent, ModelRequest, ModelStop, Reply
from perdure.testing import ScriptedModel, calls, says
from tests.conftest import Serve, until_status

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


class Own:
    """Provider of a user's own, as careless as it may be: it answers from a function."""

    def __init__(self, answer: Callable[[ModelRequest], Reply | ModelError]) -> None:
        self.answer = answer
        self.requests: list[ModelRequest] = []

    def check(self, config: ModelConfig) -> None:
        """Take any config."""

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        self.requests.append(request)
        answer = self.answer(request)
        if isinstance(answer, ModelError):
            raise answer
        yield answer


def _says(text: str, stop: ModelStop = "end_turn", *, withheld: bool = False, **usage: Any) -> Reply:
    counted = Usage.model_construct(**usage) if usage else Usage(input_tokens=5, output_tokens=5)
    return Reply(parts=(Text(text=text),), stop=stop, usage=counted, withheld=withheld)


def _holds(request: ModelRequest, words: str) -> bool:
    return any(words in message.text for message in request.messages)


def _filter(request: ModelRequest) -> Reply | ModelError:
    refused = _holds(request, "forbidden")
    return ModelError("filtered", "our content policy") if refused else _says("Hello.")


def _guardrail(request: ModelRequest) -> Reply:
    refused = _holds(request, "forbidden")
    return _says("Blocked.", "guardrail", withheld=True) if refused else _says("Hello.")


async def test_refused_message_is_not_sent_again(serve: Serve) -> None:
    """The turn ends as a refusal with the provider's words, and the session goes on; the transcript keeps all."""
    models = {"filter": Own(_filter), "guardrail": Own(_guardrail)}
    agents = [Agent(name=name, model=f"{name}:x") for name in models]
    async with serve(*agents, models=models) as client:
        for name, stop, words in (
            ("filter", "refusal", "our content policy"),
            ("guardrail", "guardrail", "Blocked."),
        ):
            session = await client.session(f"talk-{name}", agent=name)
            assert (await session.say("hello")).output == "Hello."
            refused = await session.say("something forbidden")
            assert (refused.stop_reason, words in str(refused.output)) == (stop, True)
            assert (await session.say("Are you there?")).output == "Hello."
            last = models[name].requests[-1]
            assert [message.role for message in last.messages] == ["user", "assistant"] * 2 + ["user"]
            assert _holds(last, "hello")
            assert "forbidden" in str(await session.run.transcript())


async def test_fallback_is_asked_on_a_filter_where_it_says_so(serve: Serve) -> None:
    models = {"filter": Own(_filter), "other": Own(lambda _: _says("I may."))}
    fallback = Fallback(model="other:x", on={"filtered"})
    agents = [
        Agent(name="asks", model="filter:x", fallbacks=[fallback]),
        Agent(name="ends", model="filter:x", fallbacks=["other:x"]),
    ]
    async with serve(*agents, models=models) as client:
        assert (await client.run("asks", "something forbidden")).output == "I may."
        assert (await client.run("ends", "something forbidden")).stop_reason == "refusal"


async def test_too_large_request_is_made_smaller(serve: Serve) -> None:
    """Without a fallback, attachments are put into words; of a conversation without any, less is sent."""

    def narrow(request: ModelRequest) -> Reply | ModelError:
        large = len(request.messages) > 6 or any(message.has_attachments for message in request.messages)
        return ModelError("too_large", "413: too many bytes") if large else _says("It fits.")

    own = Own(narrow)
    async with serve(Agent(name="a", model="own:x"), models={"own": own}) as client:
        picture = Image(data=PNG, media_type="image/png")
        assert (await client.run("a", [Text(text="Look."), picture])).output == "It fits."
        session = await client.session("long", agent="a")
        outputs = [(await session.say(f"message {n}")).output for n in range(6)]
        assert outputs == ["It fits."] * 6
        assert len(own.requests[-1].messages) <= 6


async def test_absurd_numbers_of_an_own_provider_are_bounded(serve: Serve) -> None:
    """A delay, or a count of tokens, that makes no sense costs neither the run nor its answer."""
    tries: dict[str, int] = {}

    def absurd(request: ModelRequest) -> Reply | ModelError:
        name = request.config.model
        tries[name] = tries.get(name, 0) + 1
        if name == "delay" and tries[name] == 1:
            error = ModelError("overloaded", "busy")
            error.retry_after = timedelta.max  # set behind its back
            return error
        if name == "usage" and tries[name] == 1:
            usage: Any = Usage.model_construct(input_tokens=10**300, output_tokens=-5)
            return ModelError("overloaded", "busy", usage=usage)
        return _says("Aisle 4.", input_tokens=10**300, output_tokens=7, cache_read_tokens=None)

    agents = [Agent(name=name, model=f"own:{name}") for name in ("delay", "usage")]
    async with serve(*agents, models={"own": Own(absurd)}) as client:
        for agent in agents:
            result = await client.run(agent.name, "go")
            assert result.output == "Aisle 4."
            assert 0 < result.usage.total_tokens < 10_000
            assert result.usage.estimated
        assert tries == {"delay": 2, "usage": 2}


async def test_absurd_delay_of_a_tool_is_none(serve: Serve) -> None:
    attempts: list[timedelta] = []
    delays = [timedelta.max, timedelta(seconds=10**11), timedelta(days=-3)]

    @tool
    async def fetch() -> str:
        """Fetch."""
        attempts.append(delays[len(attempts)] if len(attempts) < 2 else timedelta())
        if len(attempts) < 3:
            raise RetryableToolError("not yet", after=attempts[-1])
        return "done"

    script: Callable[[ModelRequest], Line] = lambda request: (  # noqa: E731
        calls("fetch") if len(request.messages) == 1 else says(request.messages[-1].text)
    )
    agent = Agent(name="a", model="scripted:x", tools=[fetch])
    async with serve(agent, models={"scripted": ScriptedModel(script)}) as client:
        assert (await client.run("a", "go")).output == "done"
    assert len(attempts) == 3


async def test_broken_answers_are_tried_again_and_elsewhere(serve: Serve) -> None:
    """No kind that a server's answer can get ends a run at once where another model is there to answer."""
    kinds: list[ErrorKind] = [
        "stream_cut",
        "malformed_reply",
        "overloaded",
        "timeout",
        "too_large",
        "bad_request",
    ]
    failing = Own(
        lambda request: ModelError(kinds[int(request.config.model)], "why", retry_after=timedelta(hours=1))
    )
    models = {"failing": failing, "other": Own(lambda _: _says("I can."))}
    agents = [Agent(name=kind, model=f"failing:{n}", fallbacks=["other:x"]) for n, kind in enumerate(kinds)]
    async with serve(*agents, models=models) as client:
        for kind in kinds:
            assert (await client.run(kind, "go")).output == "I can.", kind


async def test_payment_in_words_parks_until_resumed(serve: Serve) -> None:
    paid: list[bool] = []

    def account(request: ModelRequest) -> Reply | ModelError:
        return _says("Thanks.") if paid else ModelError("payment", "your credit balance is too low")

    async with serve(Agent(name="a", model="own:x"), models={"own": Own(account)}) as client:
        run = await client.start("a", "go")
        await until_status(client, run.id, "parked")
        failure = (await run.status()).failure
        assert failure is not None
        assert (failure.kind, failure.resumes_at) == ("payment", None)
        paid.append(True)
        await run.resume()
        assert (await run.result()).output == "Thanks."
