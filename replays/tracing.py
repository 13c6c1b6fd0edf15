"""Trace: a run as OpenTelemetry spans, in the words of the GenAI semantic conventions.

Owns the translation of a log into spans, one for each task, model call, tool call and recall; parents are as in
the tree. It never holds more than what is open at one event (and, to show texts, the folded state). Invariant:
ids come from the log, so that the same run always gives the same spans.

See https://github.com/open-telemetry/semantic-conventions-genai (status: development).
"""

import json
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import msgspec

from treering.events.catalogue import (
    Event,
    Failure,
    Header,
    ModelCalled,
    ModelReplied,
    Recalled,
    Refused,
    RunConfig,
    RunForked,
    RunResumed,
    RunStarted,
    TaskCancelled,
    TaskFailed,
    TaskFinished,
    TaskSpawned,
    ToolCalled,
    ToolReturned,
)
from treering.events.codec import decode
from treering.events.errors import StoreError, UsageError
from treering.events.log import LogReader
from treering.replays.showing import messages_of
from treering.runtime.state import RunState, evolve, new_state, parent_path
from treering.runtime.texts import Texts

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

__all__ = ["Span", "send_spans", "spans_of", "to_readable"]

_BATCH = 256
_BATCH_CHARACTERS = 2**20


class Span(msgspec.Struct, frozen=True):
    """One finished span. `key` and `parent` name it and the task above within its run; times are milliseconds."""

    run: str
    key: str
    parent: str
    name: str
    client: bool
    start: int
    end: int
    attributes: dict[str, Any]
    error: str = ""


class _Open(msgspec.Struct):
    """A task or call that has begun."""

    start: int
    name: str
    attributes: dict[str, Any]


def spans_of(store: LogReader, run: str, texts: bool = False) -> Iterator[Span]:
    """The spans of a run, each once it ends. With `texts`, prompts and replies are among their attributes.

    What is still open at the end of the log ends there, as an error.
    """
    tracer = _Tracer(store, run, texts)
    at = 0
    for record in store.read(run, until=store.head(run)[0]):
        stored = decode(record)
        at = stored.header.at
        if stored.event is not None:
            yield from tracer.add(stored.header, stored.event)
    yield from tracer.finish(at)


class _Tracer:
    def __init__(self, store: LogReader, run: str, texts: bool) -> None:
        self._run = run
        self._texts = Texts(store, run) if texts else None
        self._state: RunState = new_state()
        self._config = RunConfig("")
        self._tasks: dict[str, _Open] = {}
        self._calls: dict[tuple[str, int], _Open] = {}

    def add(self, header: Header, event: Event) -> Iterator[Span]:
        if isinstance(event, RunStarted | RunResumed | RunForked) and event.config is not None:
            self._config = event.config
        call = (header.task, header.op)
        if isinstance(event, TaskSpawned):
            self._tasks[event.path] = self._task(header, event)
        elif isinstance(event, ModelCalled | ToolCalled):
            # One span for the op, with all its attempts: it begins with the first.
            began = self._calls[call].start if call in self._calls else header.at
            self._calls[call] = (
                self._model_call(header, event, began)
                if isinstance(event, ModelCalled)
                else self._tool_call(header, event, began)
            )
        elif isinstance(event, ModelReplied | ToolReturned | Refused):
            yield from self._end_call(header, event)
        elif isinstance(event, Recalled):
            yield self._recall(header, event)
        elif isinstance(event, TaskFinished | TaskFailed | TaskCancelled) and header.task in self._tasks:
            yield from self._end_task(header, event)
        if self._texts is not None:
            evolve(self._state, header, event)

    def finish(self, at: int) -> Iterator[Span]:
        for (task, op), opened in self._calls.items():
            yield self._span(f"{task}/{op}", task, opened, at, "the log ends before its outcome")
        for path, opened in self._tasks.items():
            yield self._span(path, parent_path(path), opened, at, "the log ends before it did")

    def _span(self, key: str, parent: str, opened: _Open, end: int, error: str = "") -> Span:
        client = opened.attributes["gen_ai.operation.name"] == "chat"
        if error:
            opened.attributes.setdefault("error.type", "_OTHER")
        end = max(opened.start, end)  # a clock may have been set back
        return Span(self._run, key, parent, opened.name, client, opened.start, end, opened.attributes, error)

    def _about(self, header: Header, operation: str, op: int) -> dict[str, Any]:
        found: dict[str, Any] = {
            "gen_ai.operation.name": operation,
            "gen_ai.conversation.id": self._run,
            "treering.task": header.task,
            "treering.seq": header.seq,
        }
        if op:
            found["treering.op"] = op
        return found

    def _task(self, header: Header, event: TaskSpawned) -> _Open:
        about = self._about(header, "invoke_agent", header.op)
        about |= {"treering.task": event.path, "gen_ai.agent.name": event.agent, "gen_ai.agent.id": event.path}
        if self._texts is not None:
            about["gen_ai.input.messages"] = _messages([("user", event.goal)])
        return _Open(header.at, f"invoke_agent {event.agent}", about)

    def _end_task(self, header: Header, event: TaskFinished | TaskFailed | TaskCancelled) -> Iterator[Span]:
        opened = self._tasks.pop(header.task)
        error = ""
        if isinstance(event, TaskFailed):
            error = event.failure.message
            opened.attributes["error.type"] = event.failure.kind
        elif isinstance(event, TaskCancelled):
            error = event.reason
            opened.attributes["error.type"] = "cancelled"
        elif self._texts is not None:
            opened.attributes["gen_ai.output.messages"] = _messages([("assistant", bytes(event.result).decode())])
        yield self._span(header.task, parent_path(header.task), opened, header.at, error)

    def _model_call(self, header: Header, event: ModelCalled, began: int) -> _Open:
        model = self._config.model or self._config.weights or "unknown"
        about = self._about(header, "chat", header.op)
        about |= {
            "gen_ai.provider.name": "openai" if model.startswith("openai:") else "treering",
            "gen_ai.request.model": model.removeprefix("openai:"),
            "gen_ai.request.max_tokens": event.max_tokens,
            "gen_ai.request.temperature": event.temperature,
            "gen_ai.request.top_p": event.top_p,
            "gen_ai.request.seed": event.seed,
        }
        if event.stop:
            about["gen_ai.request.stop_sequences"] = list(event.stop)
        if header.attempt > 1:
            about["treering.attempts"] = header.attempt
        if self._texts is not None:
            said = messages_of(self._state, self._texts, header.task, event)
            about["gen_ai.input.messages"] = _messages([(one.role, one.text) for one in said])
        return _Open(began, f"chat {about['gen_ai.request.model']}", about)

    def _tool_call(self, header: Header, event: ToolCalled, began: int) -> _Open:
        about = self._about(header, "execute_tool", header.op)
        about |= {"gen_ai.tool.name": event.tool, "gen_ai.tool.call.id": event.key, "gen_ai.tool.type": "function"}
        if self._texts is not None:
            about["gen_ai.tool.call.arguments"] = bytes(event.arguments).decode()
        return _Open(began, f"execute_tool {event.tool}", about)

    def _end_call(self, header: Header, event: ModelReplied | ToolReturned | Refused) -> Iterator[Span]:
        opened = self._calls.pop((header.task, header.op), None)
        if opened is None:
            return  # a child that was refused, or a call whose body was destroyed
        about, failure = opened.attributes, None
        if isinstance(event, Refused):
            failure = Failure(event.what, f"{event.what}: {event.needed:g} over {event.limit:g}")
        else:
            failure = event.failure
            if event.reused or event.edited:
                about["treering.reused" if event.reused else "treering.edited"] = event.reused or event.edited
        if isinstance(event, ModelReplied) and failure is None:
            about |= {
                "gen_ai.response.model": about["gen_ai.request.model"],
                "gen_ai.response.finish_reasons": [event.finish],
                "gen_ai.usage.input_tokens": event.usage.prompt,
                "gen_ai.usage.output_tokens": event.usage.generated,
                "gen_ai.usage.cache_read.input_tokens": event.usage.cached,
            }
            if self._texts is not None:
                about["gen_ai.output.messages"] = _messages([("assistant", event.text)], event.finish)
        elif isinstance(event, ToolReturned) and self._texts is not None:
            about["gen_ai.tool.call.result"] = bytes(event.result).decode()
        if failure is not None:
            about["error.type"] = failure.kind
        error = "" if failure is None else failure.message
        yield self._span(f"{header.task}/{header.op}", header.task, opened, header.at, error)

    def _recall(self, header: Header, event: Recalled) -> Span:
        about = self._about(header, "retrieval", header.op)
        about |= {"gen_ai.data_source.id": "memory", "treering.hits": len(event.hits)}
        if self._texts is not None:
            about["gen_ai.retrieval.query.text"] = event.query
        opened = _Open(header.at, "retrieval memory", about)
        return self._span(f"{header.task}/{header.op}", header.task, opened, header.at)


def _messages(said: list[tuple[str, str]], finish: str = "") -> str:
    """Messages in the shape of the conventions, as JSON."""
    found: list[dict[str, Any]] = [
        {"role": role, "parts": [{"type": "text", "content": text}]} for role, text in said
    ]
    if finish:
        found[-1]["finish_reason"] = finish
    return json.dumps(found, ensure_ascii=False, separators=(",", ":"))


# --- to OpenTelemetry ---------------------------------------------------------------------------------------


def to_readable(version: str = "") -> Callable[[Span], "ReadableSpan"]:
    """How a span becomes one of the SDK's. Raises UsageError where the SDK is not installed."""
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags
    except ImportError as error:
        raise UsageError(
            f"expected OpenTelemetry, found: {error}; install it with pip install 'treering[otel]'"
        ) from error
    resource = Resource.create({"service.name": "treering"})
    scope = InstrumentationScope("treering", version)

    def context(run: str, key: str) -> SpanContext:
        trace = int.from_bytes(blake2b(run.encode(), digest_size=16).digest(), "big")
        span = int.from_bytes(blake2b(f"{run} {key}".encode(), digest_size=8).digest(), "big")
        return SpanContext(trace, span, False, TraceFlags(TraceFlags.SAMPLED))

    def convert(span: Span) -> ReadableSpan:
        return ReadableSpan(
            name=span.name,
            context=context(span.run, span.key),
            parent=context(span.run, span.parent) if span.parent else None,
            resource=resource,
            attributes=span.attributes,
            kind=SpanKind.CLIENT if span.client else SpanKind.INTERNAL,
            status=Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.UNSET),
            start_time=span.start * 1_000_000,
            end_time=span.end * 1_000_000,
            instrumentation_scope=scope,
        )

    return convert


def send_spans(spans: Iterator[Span], endpoint: str, version: str = "", timeout_s: float = 10.0) -> int:
    """Send spans to an OTLP/HTTP endpoint (such as http://localhost:4318/v1/traces); their number.

    Raises StoreError at the first batch that is not taken.
    """
    convert = to_readable(version)
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import SpanExportResult
    except ImportError as error:
        raise UsageError(f"expected the OTLP exporter, found: {error}; pip install 'treering[otel]'") from error
    exporter = OTLPSpanExporter(endpoint, timeout=timeout_s)
    sent = size = 0
    batch: list[ReadableSpan] = []

    def flush() -> None:
        nonlocal sent, size
        if batch and exporter.export(batch) is not SpanExportResult.SUCCESS:
            raise StoreError(f"expected {endpoint} to take spans, found that it did not ({sent} were sent before)")
        sent, size = sent + len(batch), 0
        batch.clear()

    try:
        for span in spans:
            batch.append(convert(span))
            size += sum(len(value) for value in span.attributes.values() if isinstance(value, str))
            if len(batch) >= _BATCH or size >= _BATCH_CHARACTERS:
                flush()
        flush()
    finally:
        exporter.shutdown()  # type: ignore[no-untyped-call]
    return sent
