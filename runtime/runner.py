"""The runner: one run, from its log, to its next answer.

Owns the life of a run in this process: opening it from its log, running its tasks as coroutines, and closing
it so that another process can go on. All it knows it reads from the log; all it does it appends. Invariant:
after a crash at any instant, `Runner` on the same log goes on from what is on disk.
"""

from collections.abc import Callable, Sequence
from typing import Any

import anyio
import msgspec
from anyio.lowlevel import checkpoint_if_cancelled

from treering.events.catalogue import (
    Failure,
    MessageReceived,
    ModelReplied,
    Ref,
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
)
from treering.events.codec import GENESIS, decode, seal, to_json
from treering.events.errors import Divergence, StoreError, TreeringError, UsageError
from treering.events.in_memory import InMemoryStore
from treering.events.log import Blob, Lease, LogStore, RunRow, record_at
from treering.memory.compaction import extract
from treering.memory.retention import parse_retention
from treering.runtime.divergence import diverged, fork_advice, raised_at
from treering.runtime.engine import Engine, Message, StreamText
from treering.runtime.errors import NotRunInFork, OutcomeUnknown, ReplayEnded
from treering.runtime.forking import cut_without, fork_run
from treering.runtime.journal import Ended, Journal, OpRecord, Reuse
from treering.runtime.recalling import Recaller
from treering.runtime.registry import AgentFunction, Agents
from treering.runtime.retries import RetryPolicy
from treering.runtime.seams import InlineWriter, Seams, ThreadWriter, World, Writer, new_run_id
from treering.runtime.sequencer import Observer, Sequencer
from treering.runtime.slots import Slots
from treering.runtime.state import RunState, evolve, new_state, parent_path
from treering.runtime.task import Task
from treering.runtime.texts import Texts

__all__ = ["CODE_VERSION", "Outcome", "Runner", "check_own", "create_run", "fork_run", "open_log", "spawned_at"]

CODE_VERSION = "0.1.0"
_FATAL = (Divergence, NotRunInFork, OutcomeUnknown, ReplayEnded, StoreError)
StreamFor = Callable[[str], StreamText | None]


class Outcome(msgspec.Struct, frozen=True):
    """How a root ended: `finished`, `failed`, `cancelled`. `result` is plain JSON data."""

    run: str
    path: str
    status: str
    result: Any = None
    error: str = ""


def open_log(
    store: LogStore, run: str, until: int | None = None
) -> tuple[RunState, Journal, bytes, list[tuple[int, RunConfig]]]:
    """The folded state, the journal, the head of the chain and the configurations by seq of a run's log."""
    state, journal, head = new_state(), Journal(), GENESIS
    configs: list[tuple[int, RunConfig]] = []
    for record in store.read(run, until=until):
        stored = decode(record)
        evolve(state, stored.header, stored.event)
        journal.add(stored.header, stored.event)
        if isinstance(stored.event, RunStarted | RunResumed | RunForked):
            configs.append((stored.header.seq, state.config))
        head = record.digest
    return state, journal, head, configs


def spawned_at(store: LogStore, run: str, seq: int) -> TaskSpawned:
    """How a task began, by the event that began it."""
    event = decode(record_at(store, run, seq)).event
    assert isinstance(event, TaskSpawned)
    return event


def check_own(run: str, config: RunConfig) -> None:
    """Raises UsageError for a run that was made from another program's log: there is no code to go on with."""
    if config.origin:
        raise UsageError(
            f"expected a run of treering, found {run}, imported from {config.origin}: it can be shown, compared and "
            "exported, not asked, resumed or replayed"
        )


def create_run(store: LogStore, config: RunConfig, seams: Seams | None = None) -> str:
    """A new run in this store; its id."""
    seams = seams or World()
    parse_retention(config.retention)
    run = new_run_id(seams)
    now = seams.now_ms()
    _, record = seal(RunStarted(config, CODE_VERSION), run, 1, now, seams.entropy(16), GENESIS)
    store.create(RunRow(run, now), [record])
    return run


class _Running:
    """One task that is running, or has ended, in this process."""

    __slots__ = ("children", "done", "ended", "scope")

    def __init__(self) -> None:
        self.children: list[str] = []
        self.done: anyio.Event | None = None
        self.ended: Ended | Refused | None = None
        self.scope: anyio.CancelScope | None = None


class Runner:
    """Opens a run for writing. Use as an async context manager, then call `resume` or `ask`.

    With `replay`, nothing is performed and nothing is written: recorded outcomes only.
    In a fork, tools act only with `live_tools`: otherwise what the parent's did is taken over.
    Raises LeaseHeld if another process writes to the run, unless `take_over`.
    """

    def __init__(
        self,
        store: LogStore,
        run: str,
        engine: Engine | None = None,
        *,
        agents: dict[str, AgentFunction] | None = None,
        config: RunConfig | None = None,
        seams: Seams | None = None,
        writer: Callable[[LogStore, str, int], Writer] | None = None,
        observers: Sequence[Observer] = (),
        stream: StreamFor | None = None,
        take_over: bool = False,
        replay: bool = False,
        attempts: int = 3,
        call_timeout_s: float | None = None,
        live_tools: bool = False,
    ) -> None:
        self.store = store
        self.run = run
        self.agents = Agents(agents)
        self.seams: Seams = seams or World()
        self.replaying = replay
        self.attempts = attempts
        self._call_timeout_s = call_timeout_s
        self.live_tools = live_tools
        self.reuse: Reuse | None = None
        self._engine = engine
        self._config = config
        self._writer_of = writer or (InlineWriter if isinstance(store, InMemoryStore) else ThreadWriter)
        self._observers = observers
        self._stream = stream
        self._take_over = take_over
        self._lease: Lease | None = None
        self.texts = Texts(store, run)
        self.recaller = Recaller(store, run, self.texts)
        self._running: dict[str, _Running] = {}
        self._fatal: BaseException | None = None
        self._scope: anyio.CancelScope | None = None
        self._group: Any = None

    async def __aenter__(self) -> "Runner":
        if self.replaying:
            self._open(0)
            return self
        self._lease = self.store.acquire(self.run, self._take_over)
        try:
            self._open(self._lease.epoch)
            config = self._config or self.state.config
            if self._lease.epoch > 1 or config != self.state.config:  # what acts is recorded
                self.sequencer.append(RunResumed(self._lease.epoch, config, CODE_VERSION))
                await self.sequencer.durable()
            self._configs.append((self.state.seq, self.state.config))
        except BaseException:
            self._lease.release()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()
        if self._lease is not None:
            self._lease.release()

    def _open(self, epoch: int) -> None:
        self.state, self.journal, head, self._configs = open_log(self.store, self.run)
        check_own(self.run, self.state.config)
        forked = self._forked()
        if forked is not None:
            parent, cut = forked.parent, self.store.row(self.run).cut
            edits = [edit for edit in forked.edits if self.journal.edited.get(edit.seq, 0) <= cut]
            used = [seq for seq, by in self.journal.reused.items() if by > cut]
            used += [edit.seq for edit in forked.edits]
            self.reuse = Reuse(lambda: open_log(self.store, parent)[1], edits, forked.reuse, cut, used)
        writer = _ReplayWriter() if self.replaying else self._writer_of(self.store, self.run, epoch)
        self._writer: Writer = writer
        config = self._config or self.state.config
        parse_retention(config.retention)  # an unknown one is refused before anything is written
        self.sequencer = Sequencer(self.run, self.state, head, writer, self.seams, self._observers, self._stop)
        self.slots = Slots(config.concurrency)

    def _forked(self) -> RunForked | None:
        """How this run was forked, if it was (not how its ancestors were)."""
        row = self.store.row(self.run)
        if not row.parent:
            return None
        event = decode(record_at(self.store, self.run, row.cut + 1)).event
        return event if isinstance(event, RunForked) else None

    def _stop(self, error: BaseException) -> None:
        if self._fatal is None:
            self._fatal = error
        if self._scope is not None:
            self._scope.cancel()

    def use(self, engine: Engine) -> None:
        """Ask this engine from now on. Raises UsageError if it is another model than the log's configuration says."""
        config, found = self.state.config, engine.info
        if config.weights and (config.weights, config.template) != (found.weights, found.template):
            raise UsageError(
                f"expected the model {config.model} as the run knows it (weights {config.weights[:12]}), found "
                f"another under this name ({found.weights[:12]}); to go on with it: "
                f"treering fork {self.run} --model {config.model} --start"
            )
        self._engine = engine

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do: the last root has ended, and no question waits."""
        waiting = self.state.asked or self.store.inbox(self.run, self.state.inbox)
        return self.state.status != "running" and not waiting

    @property
    def unreached(self) -> list[int]:
        """The edits of this fork whose op was not reached, by the seq of the outcome that each would replace."""
        return [] if self.reuse is None else self.reuse.unreached

    # --- roots --------------------------------------------------------------------------------------------

    async def ask(self, goal: str, inputs: dict[str, Any] | None = None, agent: str | None = None) -> Outcome:
        """A new root with this goal; how it ended. An unfinished root is finished first."""
        if self.state.status == "running":
            await self.resume()
        name, function = self.agents.resolve(agent or self.state.config.agent)
        path = str(len(self.state.roots) + 1)
        encoded = to_json(inputs or {})
        event = TaskSpawned(path, name, goal, msgspec.Raw(encoded))
        self.sequencer.append(event, path)
        return await self._root(path, function, goal, encoded)

    async def resume(self) -> Outcome | None:
        """Go on with the root that did not end, then with questions left in the inbox; the last outcome.

        None if no root ever began.
        """
        if not self.state.roots:
            return None
        path = self.state.roots[-1]
        outcome = await self._again(path)
        if not self.replaying:
            self._take_inbox()
            while self.state.asked:
                outcome = await self.ask(self.state.asked[0])
                self._take_inbox()
        return outcome

    async def cancel(self) -> Outcome | None:
        """End the last root and all below it, without going on with it; None if it had ended."""
        if self.state.status != "running":
            return None
        path = self.state.roots[-1]
        self._running.setdefault(path, _Running())
        self.cancel_tree(path, "a person cancelled it")
        await self.sequencer.durable()
        return self._outcome(path, self._running[path].ended)

    async def replay(self) -> list[Outcome]:
        """Run all roots again on recorded outcomes alone. Raises Divergence where the code asks otherwise."""
        return [await self._again(path, enter=True) for path in list(self.state.roots)]

    async def _again(self, path: str, enter: bool = False) -> Outcome:
        spawned = spawned_at(self.store, self.run, self.state.tasks[path].spawned)
        running = self._running.get(path)
        ended = self.journal.ended(path) or (running.ended if running else None)
        if ended is not None and not enter:
            return self._outcome(path, ended)
        # A replay is told of another agent by the configuration; else each root has the one that it was asked of.
        another = enter and self._config is not None and self._config.agent != self.state.config.agent
        agent = "" if another else spawned.agent
        _, function = self.agents.resolve(agent or (self._config or self.state.config).agent)
        return await self._root(path, function, spawned.goal, bytes(spawned.inputs))

    async def _root(self, path: str, function: AgentFunction, goal: str, inputs: bytes) -> Outcome:
        if self.reuse is not None:
            self.reuse.correspond(path, "", "", "")
        async with anyio.create_task_group() as group:
            self._group, self._scope = group, group.cancel_scope
            if not self.replaying:
                group.start_soon(self._watch_inbox)
            self.start_task(path, function, goal, inputs, self.state.config.window_tokens, "", None)
            ended = await self.wait_child(path)
            group.cancel_scope.cancel()
        self._group = self._scope = None
        if self._fatal is not None:
            raise self._fatal
        if not self.replaying:
            await self.sequencer.durable()  # a cancelled root ends in memory first
        return self._outcome(path, ended)

    def _outcome(self, path: str, ended: Ended | Refused | None) -> Outcome:
        if isinstance(ended, TaskFinished):
            return Outcome(self.run, path, "finished", msgspec.json.decode(ended.result))
        if isinstance(ended, TaskFailed):
            return Outcome(self.run, path, "failed", error=self.state.tasks[path].failure)
        reason = ended.reason if isinstance(ended, TaskCancelled) else "it never ran"
        return Outcome(self.run, path, "cancelled", error=reason)

    # --- tasks --------------------------------------------------------------------------------------------

    def start_task(
        self,
        path: str,
        function: AgentFunction,
        goal: str,
        inputs: bytes,
        window_tokens: int,
        keys: str,
        refused: Refused | None,
    ) -> None:
        """Begin a task as a coroutine, unless the log says how it ended."""
        running = self._running[path] = _Running()
        above = self._running.get(parent_path(path))
        if above is not None:
            above.children.append(path)
        ended = self.journal.ended(path)
        if refused is not None:
            running.ended = refused
        elif ended is not None and (not self.replaying or isinstance(ended, TaskCancelled)):
            running.ended = ended  # a replay enters what ended by itself, and not what was ended from above
        else:
            self._group.start_soon(self._run_task, running, path, function, goal, inputs, window_tokens, keys)

    async def wait_child(self, path: str) -> Ended | Refused:
        """Wait until a task has ended; how. Its end is on disk by then."""
        running = self._running[path]
        while running.ended is None:
            if running.done is None:
                running.done = anyio.Event()
            await running.done.wait()
        await checkpoint_if_cancelled()
        return running.ended

    async def _run_task(
        self,
        running: _Running,
        path: str,
        function: AgentFunction,
        goal: str,
        inputs: bytes,
        window_tokens: int,
        keys: str,
    ) -> None:
        event: TaskFinished | TaskFailed
        with anyio.CancelScope() as running.scope:
            try:
                if running.ended is not None:
                    return
                task = Task(self, path, goal, window_tokens, keys)
                try:
                    result = await self.agents.invoke(function, task, goal, inputs)
                    await task.close()
                    event = TaskFinished(msgspec.Raw(to_json(result)))
                except _FATAL:
                    raise
                except Exception as error:
                    why = _leaves(error)
                    message = "; ".join(" ".join(str(one).split()) or type(one).__name__ for one in why)
                    event = TaskFailed(Failure(type(why[0]).__name__, message, raised_at(why[0])))
                await self._end_task(running, path, event)
            except _FATAL as error:
                self._stop(error)

    async def _end_task(self, running: _Running, path: str, event: TaskFinished | TaskFailed) -> None:
        recorded = self.journal.ended(path)
        if recorded is not None:
            if to_json(_placeless(recorded)) != to_json(_placeless(event)):
                raise Divergence(
                    path,
                    0,
                    type(recorded).__name__,
                    type(event).__name__,
                    f"-{to_json(recorded).decode()}\n+{to_json(event).decode()}",
                    "its end",
                    fork_advice(self.run, cut_without(self.store, self.run, self.journal.ended_seq(path))),
                )
            event = recorded  # type: ignore[assignment]
        elif self.replaying:
            raise ReplayEnded(f"task {path} ended where the log does not say so")
        else:
            await checkpoint_if_cancelled()
            for child in self._children_running(path):
                self.cancel_tree(child, "its parent ended")
            await self.sequencer.record(event, path)
        self.journal.forget(path)
        self._set_ended(running, event)

    def _set_ended(self, running: _Running, event: Ended | Refused) -> None:
        running.ended = event
        if running.done is not None:
            running.done.set()

    def _children_running(self, path: str) -> list[str]:
        running = self._running[path]
        return [child for child in running.children if self._running[child].ended is None]

    def cancel_tree(self, path: str, reason: str, more: bool = False) -> bool:
        """End a task and all below it, deepest first; whether it was running. Recorded in one transaction.

        With `more`, so is the event that the caller appends next: the op that ended it, which a resume would
        otherwise ask of a task that has ended.
        """
        running = self._running.get(path)
        if running is None or running.ended is not None or self.journal.ended(path) is not None:
            return False
        if self.state.tasks[path].status != "running" and not self.replaying:
            return False  # its end is on its way to the disk
        # By the state, not by what runs: after a resume, children may not have begun again.
        below = [path] if self.state.tasks[path].status == "running" else []
        for other in below:  # it grows on the way
            below += self.state.tasks[other].running or ()
        below.sort(key=lambda other: self.state.tasks[other].spawned)
        # All are stopped before any is said to have ended, so that nobody wakes up to act on it.
        for other in below:
            if (found := self._running.get(other)) is not None and found.scope is not None:
                found.scope.cancel()
        event = TaskCancelled(reason)
        for other in reversed(below):
            if not self.replaying:
                self.sequencer.append(event, other, more=more or other != below[0])
            if (found := self._running.get(other)) is not None:
                self._set_ended(found, event)
        return True

    # --- the inbox ----------------------------------------------------------------------------------------

    def _take_inbox(self) -> None:
        for row in self.store.inbox(self.run, self.state.inbox):
            self.sequencer.append(MessageReceived(row.id, row.kind, row.text))

    async def _watch_inbox(self) -> None:
        try:
            while True:
                self._take_inbox()
                if self.state.cancelled:
                    self.cancel_tree(self.state.roots[-1], "a person cancelled it")
                await anyio.sleep(0.5)
        except StoreError as error:
            self._stop(error)

    # --- what tasks ask for -------------------------------------------------------------------------------

    def need_live(self, path: str, op: int, what: str) -> None:
        """Raises ReplayEnded in a replay: what is not recorded is not performed. In a run that stops, nothing is."""
        if self._fatal is not None:
            raise self._fatal
        if self.replaying:
            raise self.fatal(ReplayEnded(f"task {path} op {op} ({what}) is not recorded: the log ends before it"))

    def fatal(self, error: TreeringError) -> TreeringError:
        """The same error, to be raised: it stops the run even if agent code catches it."""
        self._stop(error)
        return error

    def diverged(
        self, path: str, number: int, record: OpRecord, asked: str | bytes, agent: Any, before: str | None = None
    ) -> TreeringError:
        """The error for an op whose outcome is that of another request; see `divergence.diverged`."""
        at = cut_without(self.store, self.run, record.called_seq or record.seq)
        return self.fatal(diverged(self.run, path, number, record, asked, agent, at, before))

    def need_known(self, path: str, number: int, record: OpRecord, request: str) -> None:
        """Raises OutcomeUnknown where this op, when it was another, called a tool that may have acted."""
        called = record.called
        if record.outcome is not None or not isinstance(called, ToolCalled):
            return
        if called.request != request and not called.idempotent:
            raise self.unknown(path, number, called.tool, record)

    def unknown(self, path: str, number: int, tool: str, record: OpRecord) -> TreeringError:
        """The error for a tool that may have acted and must not be called again."""
        at = cut_without(self.store, self.run, record.called_seq)
        return self.fatal(
            OutcomeUnknown(
                f"task {path} op {number}: {tool} was called before the last writer ended and may have acted; it is "
                "not idempotent, so a person must settle it (to call it again: "
                f"treering fork {self.run} --at {at} --start --live-tools)"
            )
        )

    def config_at(self, seq: int | None) -> RunConfig:
        """The configuration that held when event `seq` was written; None: now."""
        if seq:
            for since, config in reversed(self._configs):
                if since <= seq:
                    return config
        return self.state.config

    @property
    def call_timeout_s(self) -> float:
        """How long one attempt at a model, or one call of a tool, may take."""
        return self._call_timeout_s or self.state.config.call_timeout_s

    def engine_for(self) -> Engine:
        """The engine. Raises UsageError if the run was opened without one."""
        if self._engine is None:
            raise UsageError("expected an engine to ask a model, found none; give one with --model")
        return self._engine

    def count(self, message: Message) -> int:
        """Tokens of a message in a prompt."""
        return self.engine_for().count(message)

    def stream_to(self, path: str) -> StreamText | None:
        """Where to show the text that a task's model is generating."""
        return None if self._stream is None else self._stream(path)

    def delay_s(self, attempt: int, retry_after_s: float | None) -> float:
        """How long to wait before another attempt. Chance is not recorded: it changes time, not outcomes."""
        draw = int.from_bytes(self.seams.entropy(4), "big") / (1 << 32)
        return RetryPolicy().delay_s(attempt, retry_after_s, draw)

    def text(self, ref: Ref) -> str:
        """The text that a reference stands for."""
        return self.texts.of(ref, self.state.memory)

    def keep_blob(self, blob: Blob) -> None:
        """A blob that shall be committed with the next event."""
        self.sequencer.keep(blob)

    async def read_input(self, path: str, root: str | None) -> Any:
        """Read a file as text, off the event loop."""
        from treering.tools.inputs import read_input

        return await anyio.to_thread.run_sync(read_input, path, root)

    async def summarise(
        self,
        task: Task,
        op: int,
        text: str,
        room_tokens: int,
        system: str,
        prompt: Callable[[str, int], str],
    ) -> tuple[str, str]:
        """A model's summary of `text` in about `room_tokens`, by a system task; "" if it gave none.

        The task `PATH~OP` asks once; a second compaction for the same op does without a model.
        """
        path = f"{task.path}~{op}"
        known = self.state.tasks.get(path)
        recorded = self.journal.ops(path).get(1)
        if recorded is not None and isinstance(recorded.outcome, ModelReplied | Refused):
            self.journal.take(path, 1)
            reply = recorded.outcome.text.strip() if isinstance(recorded.outcome, ModelReplied) else ""
            if self.state.tasks[path].status != "running":
                return reply, path
        elif known is not None and known.status != "running":
            return "", ""
        else:
            if known is None:
                self.sequencer.append(TaskSpawned(path, "compaction", "shorten"), task.path, op)
            space = task.window_tokens - room_tokens - 200
            fitting = text if self.count(Message("user", text)) <= space else extract(text, max(64, space * 3))
            if self.reuse is not None:
                self.reuse.correspond(path, task.path, "", "")
            asker = Task(self, path, "", task.window_tokens, "")
            try:
                answer = await asker.generate(
                    prompt(fitting, room_tokens * 2 // 3), system=system, max_tokens=room_tokens
                )
                reply = answer.text.strip()
            except _FATAL:
                raise
            except TreeringError:
                reply = ""
        await self.sequencer.record(TaskFinished(msgspec.Raw(to_json(bool(reply)))), path)
        return reply, path


def _placeless(ended: Ended) -> Ended:
    """The same end, wherever in the code it came: lines move when code changes."""
    if not isinstance(ended, TaskFailed):
        return ended
    return TaskFailed(msgspec.structs.replace(ended.failure, line=""))


def _leaves(error: BaseException) -> list[BaseException]:
    """What went wrong: of a group, which each event loop words in its own way, its members."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for one in error.exceptions for leaf in _leaves(one)]
    return [error]


class _ReplayWriter:
    """Writes nothing: a replay appends nothing."""

    def soon(self, fly: Callable[[], None]) -> None:
        fly()

    def submit(self, commit: Any, done: Callable[[BaseException | None], None]) -> None:
        raise StoreError("a replay wrote an event; this is a defect")

    def close(self) -> None:
        """Nothing runs."""
