"""W&B as a sink. Written against wandb 0.31; nothing outside this file imports it."""

from __future__ import annotations

import base64
import glob
import importlib.util
import json
import logging
import netrc
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from kvbench.common.loggers import WandbSettings
from kvbench.common.text import one_line
from kvbench.report.loggers.ledger import Ledger, locked, read_ledger, stamp, write_ledger
from kvbench.report.loggers.sinks import About, Content, HistoryRow, Overview, Table
from kvbench.report.loggers.wandb_report import build, save

log = logging.getLogger(__name__)

EXTRA = "pip install 'kvbench[wandb]'"
_SERVER = "https://api.wandb.ai"
_ANSWER = 5.0  # seconds until a server that does not answer counts as away
_INIT = 30.0  # seconds that W&B may take for the start of a run
_LONGEST_TABLE = 10_000  # rows that W&B shows of a table; longer ones are split
# Who runs this, where, and with which packages is nobody's business; config and versions are logged by us.
_PRIVATE = {
    "silent": True, "console": "off", "x_disable_stats": True, "x_disable_meta": True, "x_disable_machine_info": True,
    "x_save_requirements": False, "disable_git": True, "disable_code": True, "save_code": False, "symlink": False,
    "host": "", "username": "", "email": "", "program": "kvbench",
}  # fmt: skip


class WandbSink:
    """W&B runs in `<outputs>/wandb`, or on a server when there is a key and the server answers."""

    name = "wandb"

    def __init__(self, settings: WandbSettings, outputs: Path) -> None:
        """Choose between online and offline.

        Raises:
            ImportError: wandb is not installed.
        """
        self.folder = outputs.absolute() / "wandb"
        self.project = settings.project or os.environ.get("WANDB_PROJECT") or "kvbench"
        self.entity = settings.entity or os.environ.get("WANDB_ENTITY")
        self.server = server()
        self.group = settings.group
        self.tags: Sequence[str] = settings.tags
        self.report = settings.report
        self.folder.mkdir(parents=True, exist_ok=True)
        os.environ["WANDB_CACHE_DIR"] = str(self.folder / "kvbench" / ".cache")
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._wandb = wandb
        self.online = _is_online(settings.mode)

    def place(self, id: str) -> Path:
        """Return the folder of our own notes about an entry."""
        return self.folder / "kvbench" / self.project / id

    def holds(self, ledger: Ledger) -> bool:
        """Return True if an entry is where it would be written now. Offline, its folder may have been sent away."""
        if self._is_elsewhere(ledger):
            return False
        if ledger.online or not self.online:
            return ledger.online or ledger.sent or _was_sent(self.folder / ledger.folder, ledger.id) is not None
        return ledger.sent or _was_sent(self.folder / ledger.folder, ledger.id) is True

    def _is_elsewhere(self, ledger: Ledger) -> bool:
        """Return True if an entry is known to belong to another user or team, or to be on another server."""
        on_other_server = self.online and ledger.server not in (None, self.server)
        return on_other_server or ledger.entity not in (None, self.entity or "")

    def open(self, about: About, before: Ledger) -> OpenWandbRun:
        """Begin or resume a W&B run; where a server refuses it, offline."""
        self._remove_offline(about.id)
        os.environ["WANDB_DATA_DIR"] = str(self.place(about.id) / "staging")
        shutil.rmtree(self.place(about.id) / "staging", ignore_errors=True)
        if self.online:
            try:
                return OpenWandbRun(self, about, self._init(about, "online"))
            except Exception as error:  # a wrong key, no network: whatever it is, the results go to the disk
                text = one_line(str(error)) or type(error).__name__
                log.warning("W&B: %s; going on offline", text if len(text) <= 160 else f"{text[:160]}…")
                self.online = False
                self._wandb.teardown()  # what was refused still holds the id
                self._remove_offline(about.id)
        return OpenWandbRun(self, about, self._init(about, "offline"))

    def share(self, overview: Overview) -> None:
        """Write the W&B report of a sweep, or update it if the sweep shows more than before.

        Without a server or wandb-workspaces there is none; a line says so, once.
        """
        if not self.report or not overview.sections:
            return
        lacking = self._lacks()
        if lacking is not None:
            self.report = False
            log.info("W&B: no report, %s", lacking)
            return
        place = self.place(f"report-{overview.mark}")
        with locked(place) as is_ours:
            before, mark = read_ledger(place), stamp([], [self.entity, asdict(overview)])
            if not is_ours or (before.complete and before.stamp == mark and not self._is_elsewhere(before)):
                return
            report = save(build(overview, self.project, self.entity or ""), before.id)
            saved = Ledger(stamp=mark, id=report.id, complete=True, online=True)
            write_ledger(place, replace(saved, entity=self.entity or "", server=self.server))
        log.info("W&B: report %s", report.url)

    def _lacks(self) -> str | None:
        """Return what a report lacks, and how to get it; None if nothing."""
        again = f"kvbench log {self.folder.parent} logger=wandb"
        if not self.online:
            return f"as W&B is offline; once there is a key and a server: scripts/wandb_sync, then {again}"
        if importlib.util.find_spec("wandb_workspaces") is None:
            return f"as wandb-workspaces is not installed; {EXTRA}, then: {again}"
        return None

    def outcome(self) -> str:
        """Return where the runs are."""
        if self.online:
            return f"W&B: project {self.project}"
        return f"W&B: offline in {self.folder}; to upload: scripts/wandb_sync {self.folder.parent}"

    def _init(self, about: About, mode: Literal["online", "offline"]) -> Any:
        return self._wandb.init(
            project=self.project,
            entity=self.entity,
            id=about.id,
            name=about.name,
            group=about.group,
            job_type=about.job_type,
            tags=list(about.tags),
            config=dict(about.config),
            dir=str(self.folder.parent),
            mode=mode,
            resume="allow",
            reinit="create_new",
            settings={**_PRIVATE, "init_timeout": _INIT},  # a new dictionary each time: wandb writes into it
        )

    def _remove_offline(self, id: str) -> None:
        """Remove what an earlier start left of a run on the disk: all of it is written again, or sent."""
        others = {read_ledger(path).folder for path in (self.folder / "kvbench").glob(f"*/{id}")}
        others -= {read_ledger(self.place(id)).folder}
        for folder in self.folder.glob(f"*run-*-{glob.escape(id)}"):
            if folder.name not in others and folder.name.startswith(("offline-run-", "run-")):
                shutil.rmtree(folder, ignore_errors=True)


@dataclass
class OpenWandbRun:
    """A W&B run that is being written."""

    sink: WandbSink
    about: About
    run: Any
    shown: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.id = self.about.id
        self.online = self.sink.online
        recorded = self.run.summary.get("recorded") if self.online else None
        self.step = int(recorded) if isinstance(recorded, int | float) else 0

    def log(self, rows: Sequence[HistoryRow]) -> None:
        """Write the rows of new steps."""
        for row in rows:
            when = {} if row.seconds is None else {"_timestamp": row.seconds}
            self.run.log({**row.values, **when}, step=row.step)
            self.step = row.step

    def finish(self, content: Content) -> None:
        """Write tables, images, predictions and the summary, and end the run."""
        wandb = self.sink._wandb
        shown: dict[str, Any] = {}
        for name, table in content.tables.items():
            for part, rows in enumerate(_parts(table), start=1):
                key = name if part == 1 else f"{name}-{part}"
                shown[key] = wandb.Table(columns=list(table.columns), data=[list(row) for row in rows])
        shown |= {name: wandb.Image(str(path)) for name, path in content.images.items()}
        if shown:
            self.run.log(shown, step=max(self.step, int(self.run.step)))  # steps of a resumed run never go back
        self.shown = sorted(shown)
        if content.files:
            artifact = wandb.Artifact(f"predictions-{self.id}", type="predictions")
            for path in content.files:
                artifact.add_file(str(path), policy="immutable")  # we write it once; no copy in a cache
            self.run.log_artifact(artifact)
        self.run.summary.update({key: value for key, value in content.summary.items() if value is not None})
        self.run.finish(exit_code=int(content.failed))

    def abandon(self) -> None:
        """End the run as failed."""
        self.run.finish(exit_code=1)

    def ledger(self) -> Ledger:
        """Return what is to be remembered of the run."""
        folder = "" if self.online else Path(self.run.settings.sync_dir).name
        about = Ledger(id=self.id, online=self.online, folder=folder, shown=self.shown)
        return replace(about, entity=self.sink.entity or "", server=self.sink.server if self.online else None)


def _parts(table: Table) -> list[Sequence[Sequence[Any]]]:
    """Split a table into parts that W&B shows whole."""
    starts = range(0, max(1, len(table.rows)), _LONGEST_TABLE)
    return [table.rows[start : start + _LONGEST_TABLE] for start in starts]


def _was_sent(folder: Path, id: str) -> bool | None:
    """Return True if `wandb sync` has sent a run's folder, False if not, None if it is not there."""
    if not id or not (folder / f"run-{id}.wandb").is_file():
        return None
    return (folder / f"run-{id}.wandb.synced").exists()


def server() -> str:
    """Return the address of the server that W&B uses."""
    return (os.environ.get("WANDB_BASE_URL") or _SERVER).rstrip("/")


def _is_online(mode: str) -> bool:
    """Return True if W&B is to be used online: there is a key, and the server takes it."""
    wish = os.environ.get("WANDB_MODE", "online") if mode == "auto" else mode
    if wish not in ("online", "run", "shared"):
        return False
    reason = _obstacle(server())
    if reason is not None and mode == "online":
        log.warning("logger.wandb.mode=online: %s; going on offline", reason)
    elif reason is not None:
        log.info("W&B: %s; going on offline", reason)
    return reason is None


def _obstacle(server: str) -> str | None:
    """Return why W&B cannot be used online, None if it can. The server is asked who we are, as W&B does first."""
    key = _key(server)
    if key is None:
        return "no API key (WANDB_API_KEY, or `wandb login`)"
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = "Basic " + base64.b64encode(f"api:{key}".encode()).decode()
    question = json.dumps({"query": "query { viewer { id } }"}).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{server}/graphql", question, headers), timeout=_ANSWER):
            return None
    except urllib.error.HTTPError as error:
        return f"{server} refuses the API key ({error.code})" if error.code in (401, 403) else None
    except (OSError, ValueError) as error:
        return f"{server} does not answer ({one_line(str(getattr(error, 'reason', error)))})"


def _key(server: str) -> str | None:
    """Return the API key for a server, "" for another kind of login, None for none."""
    if os.environ.get("WANDB_API_KEY"):
        return os.environ["WANDB_API_KEY"]
    for file in filter(None, [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]):
        try:
            entry = netrc.netrc(os.path.expanduser(file)).authenticators(urlparse(server).hostname or "")
        except (OSError, netrc.NetrcParseError):
            continue
        if entry:
            return entry[2]
    return "" if os.environ.get("WANDB_IDENTITY_TOKEN_FILE") else None
