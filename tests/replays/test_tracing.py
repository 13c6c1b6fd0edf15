"""Spans: one for each task, call and recall, with parents as in the tree, in the words that others use."""

import http.server
import json
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "runtime"))

from corpus import CORPUS
from laws import fresh, run_once, script
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from treering.events.codec import decode
from treering.events.errors import StoreError
from treering.replays.tracing import send_spans, spans_of, to_readable
from treering.runtime.runner import fork_run
from treering.runtime.state import parent_path
from treering.runtime.testing import ScriptedEngine

SAMPLES = Path(__file__).parents[2].parent / "shared" / "data" / "transcripts" / "otel" / "openai_v2_spans.jsonl"


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def done(name):
    store, run = fresh(name)
    await run_once(store, run, CORPUS, ScriptedEngine(script))
    return store, run


@pytest.mark.parametrize("name", sorted(set(CORPUS) - {"cancelled", "racing", "late"}))
async def test_every_task_and_call_is_one_span_under_its_task(name):
    """Nothing is lost and nothing is twice; a span lies within its trace; the same run gives the same spans."""
    store, run = await done(name)
    stored = [decode(record) for record in store.read(run)]
    spans = list(spans_of(store, run))
    kinds = [one.header.kind for one in stored]
    by_name = [span.name.split()[0] for span in spans]
    assert by_name.count("invoke_agent") == kinds.count("TaskSpawned")
    ops = {(one.header.task, one.header.op) for one in stored if one.header.kind == "ModelCalled"}
    assert by_name.count("chat") == len(ops)
    assert by_name.count("execute_tool") == kinds.count("ToolReturned")
    assert by_name.count("retrieval") == kinds.count("Recalled")
    keys = {span.key for span in spans}
    assert len(keys) == len(spans)
    for span in spans:
        assert span.parent in keys or span.parent == ""
        assert span.start <= span.end
        if span.name.startswith("invoke_agent"):
            assert span.parent == parent_path(span.key)
    assert spans == list(spans_of(store, run))


async def test_spans_use_the_attributes_of_others_with_their_types():
    """What an instrumentation of a known client emits, ours emits too, with values of the same type and shape."""
    if not SAMPLES.exists():
        pytest.skip("the samples of other instrumentations are not there")
    store, run = await done("fan_out")
    convert = to_readable()
    ours = [json.loads(convert(span).to_json()) for span in spans_of(store, run, texts=True)]
    theirs = [json.loads(line) for line in SAMPLES.read_text().splitlines()]
    for operation in ("chat", "invoke_agent"):
        our = next(span for span in ours if span["attributes"]["gen_ai.operation.name"] == operation)
        good = [
            span
            for span in theirs
            if span["attributes"]["gen_ai.operation.name"] == operation and span["status"]["status_code"] == "UNSET"
        ]
        assert good
        assert our["kind"] == good[0]["kind"]
        assert our.keys() == good[0].keys()
        for name, value in good[0]["attributes"].items():
            if name == "gen_ai.response.id":
                continue  # an endpoint's own
            found = our["attributes"][name]
            assert isinstance(found, int | float if isinstance(value, int) else type(value)), name
            if name.endswith(".messages"):
                assert json.loads(found)[0].keys() == json.loads(value)[0].keys()


async def test_failures_are_errors_and_what_is_open_ends_with_the_log():
    """A failed child, a model that gave up, a log that ends in the middle of a call."""
    store, run = await done("failing")
    failed = [span for span in spans_of(store, run) if span.error]
    assert [(span.key, span.attributes["error.type"]) for span in failed] == [("1.1", "ValueError")]
    assert failed[0].error == "this one always fails"
    call = next(decode(record).seq for record in store.read(run, kinds=["ModelCalled"]))
    fork = fork_run(store, run, call)
    spans = {span.key: span for span in spans_of(store, fork)}
    assert spans["1"].error
    assert any("/" in key and span.error == "the log ends before its outcome" for key, span in spans.items())


@pytest.fixture
def collector():
    """An OTLP/HTTP endpoint; (its address, the requests that came, the status to answer with)."""
    came, status = [], [200]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            came.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(status[0])
            self.end_headers()

        def log_message(self, *_):
            """Not on stderr."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1/traces", came, status
    server.shutdown()
    thread.join()
    server.server_close()


async def test_spans_reach_an_endpoint_and_a_refusal_is_one_clear_error(collector):
    """All of them, with one trace id and the parents of the tree; a collector that refuses is said to."""
    endpoint, came, status = collector
    store, run = await done("nested")
    expected = list(spans_of(store, run))
    assert send_spans(iter(expected), endpoint) == len(expected)
    got = [
        span
        for request in came
        for one in request.resource_spans
        for scope in one.scope_spans
        for span in scope.spans
    ]
    assert [span.name for span in got] == [span.name for span in expected]
    assert len({span.trace_id for span in got}) == 1
    ids = {span.key: sent.span_id for span, sent in zip(expected, got, strict=True)}
    assert [sent.parent_span_id for sent in got] == [ids.get(span.parent, b"") for span in expected]
    status[0] = 400
    with pytest.raises(StoreError, match="found that it did not"):
        send_spans(iter(expected), endpoint)
