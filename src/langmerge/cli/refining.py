"""refine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from langmerge.cli.console import bars, print_table, say, show, tell
from langmerge.cli.options import Data, Json, Overwrite
from langmerge.errors import InputError
from langmerge.locales import canonical_locale

if TYPE_CHECKING:
    from langmerge.refining import Job, Line, Shift
    from langmerge.tasks import Task, Unlabelled

DEFAULT_TASK = "massive:intent"

REPORTS = {"dev": ("dev",), "test": ("dev", "test")}


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(refine)


def refine(
    model: Annotated[
        Path, typer.Argument(help="Folder of a model, or of a PEFT adapter on one.", metavar="MODEL")
    ],
    target: Annotated[str, typer.Option(help="Locale of the unlabelled text.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The new folder.")],
    task: Annotated[
        str | None,
        typer.Option(help="Task whose text of the target is learned on, without its labels."),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            help="Unlabelled text instead: .txt (a line each), .jsonl or .csv with text.", metavar="FILE"
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many unlabelled texts.")] = None,
    rounds: Annotated[
        int, typer.Option(min=0, help="The result of one teaches the next; 0: nothing but --prior.")
    ] = 1,
    epochs: Annotated[int, typer.Option(min=1, help="Most passes in a round.")] = 2,
    lr: Annotated[float, typer.Option(min=1e-12, help="Peak learning rate of the body.")] = 3e-5,
    head_lr: Annotated[float, typer.Option(min=1e-12, help="Peak learning rate of the head.")] = 3e-4,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    temperature: Annotated[
        float, typer.Option(min=0.01, help="Of teacher and student; above 1 softens the labels.")
    ] = 1.0,
    prior: Annotated[
        str | None,
        typer.Option(
            help="Expected shares of the labels, towards which teacher and result are moved: as in the labelled train text "
            "of other LOCALES, as in a .json FILE of a number per label, or uniform.",
            metavar="LOCALES|FILE|uniform",
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=1, help="How far towards --prior; 1 believes it wholly.", show_default="0.5"
        ),
    ] = None,
    teacher: Annotated[
        list[Path] | None,
        typer.Option(help="Model whose labels are learned instead of MODEL's own; the mean of several."),
    ] = None,
    base: Annotated[
        Path | None, typer.Option(help="Where MODEL is an adapter: its base, instead of the one it names.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    dev_labels: Annotated[
        bool,
        typer.Option(
            "--dev-labels", help="Choose the epoch by the target's dev labels, not by held-out text."
        ),
    ] = False,
    controls: Annotated[
        Path | None,
        typer.Option(
            help="Pool of MODEL's sources: refine its best source on dev and their linear merge too.",
            metavar="POOL",
        ),
    ] = None,
    report: Annotated[str, typer.Option(help="dev, or test: dev and test accuracy.")] = "dev",
    overwrite: Overwrite = False,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """Learn from unlabelled target text: a model's soft labels for it teach a copy of the model. Continues where it
    stopped.
    """
    from langmerge.pool import Pool
    from langmerge.refining import Job
    from langmerge.refining import refine as run
    from langmerge.training import Refinement

    if report not in REPORTS:
        raise InputError(f"--report is {report!r}: give dev or test")
    if strength is not None and not prior:
        raise InputError(f"--strength {strength:g} is how far towards a prior: give --prior, or leave it out")
    pool = Pool.load(controls) if controls is not None else None
    named = task or (pool.task if pool is not None else None)
    loaded, found = _text(named, canonical_locale(target), text, limit, data)
    for note in found.notes:
        tell(f"note: {note}")
    settings = Refinement(
        rounds=rounds,
        epochs=epochs,
        lr=lr,
        head_lr=head_lr,
        batch_size=batch_size,
        temperature=temperature,
        prior=_prior(prior, loaded, found.locale) if prior else None,
        strength=0.5 if strength is None else strength,
        seed=seed,
    )
    job = Job(
        model,
        found,
        out,
        settings,
        teachers=tuple(teacher or ()),
        base=base,
        task=loaded,
        dev_labels=dev_labels,
        splits=REPORTS[report],
        overwrite=overwrite,
    )
    lines = run(job, pool=pool, progress=bars)
    for line in lines:
        for note in line.refined.record["notes"]:
            tell(f"note: {line.name}: {note}")
    payload = {
        "out": str(out),
        "target": job.target,
        "rows": len(found),
        "origin": found.origin,
        "notes": list(found.notes),
        "models": [line.payload() for line in lines],
    }
    show(as_json, payload, lambda: _print(job, lines))


def _text(
    task: str | None, locale: str, file: Path | None, limit: int | None, data: Path | None
) -> "tuple[Task | None, Unlabelled]":
    """The task, where there is one to compare with, and the text."""
    from langmerge.tasks import file_text, load_task, task_text

    if file is None:
        loaded = load_task(task or DEFAULT_TASK, data=data)
        return loaded, task_text(loaded, locale, limit=limit)
    own = load_task(task, data=data) if task else None
    return own, file_text(file, locale=locale, task=own, limit=limit)


def _prior(given: str, task: "Task | None", target: str) -> dict[str, float]:
    """A share for each label of the task, or of the file."""
    from langmerge.tasks import label_shares, read_shares

    if given.endswith(".json"):
        return read_shares(Path(given))
    if task is None:
        raise InputError(
            f"--prior {given} needs the labels of a task: name it with --task, or give a .json file"
        )
    if given == "uniform":
        return dict.fromkeys(task.labels, 1 / len(task.labels))
    return label_shares(task, [canonical_locale(one) for one in given.split(",")], target=target)


def _print(job: "Job", lines: "list[Line]") -> None:
    made = lines[0].refined
    said = "was there already" if made.kept else "written"
    say(
        f"{job.model} refined on {len(job.text)} texts of {job.text.origin}: {job.out} {said} "
        f"(signature {made.record['signature']})"
    )
    header = ["", "epoch kept", "agreement %", "excess, nats", "classes (teacher's)", "distance from prior"]
    width = len(header) - (job.refinement.prior is None)
    courses = [_course(line)[:width] for line in lines]
    print_table("on held-out text, against the last round's teacher", header[:width], courses)
    for place, split in enumerate(job.splits if job.task is not None else ()):
        header = ["", "before %", "95 %", "after %", "95 %", "gain, points", "the model's lead, points"]
        rows = [[line.name, *_cells(line.shifts[place])] for line in lines]
        title = f"{split} accuracy, {lines[0].shifts[place].rows} rows"
        chosen = " (its labels chose the epochs)" if split == "dev" and job.dev_labels else ""
        print_table(title + chosen, header, rows)
    if len(lines) > 1:
        from langmerge.refining import controls_folder

        say(f"the controls are in {controls_folder(job.out)}")


def _course(line: "Line") -> list[str]:
    record = line.refined.record
    found = record["alignment"]
    moved = "" if found is None else "{:.2f} → {:.2f}".format(*found["distance"])
    if found is not None and not found["kept"]:
        moved += ": left"
    if not record["rounds"]:
        return [line.name, "", "", "", "", moved]
    last = record["rounds"][-1]
    kept = f"{last['kept_epoch']} of round {last['round']}"
    at = (last["round"], last["kept_epoch"])
    entry = next((e for e in record["history"] if (e["round"], e["epoch"]) == at), None)
    if entry is None:
        return [line.name, f"{kept}: undone", "", "", "", moved]
    classes = f"{entry['classes']} ({last['teacher']['classes']})"
    return [line.name, kept, f"{100 * entry['agreement']:.1f}", f"{entry['excess']:.3f}", classes, moved]


def _cells(one: "Shift") -> list[str]:
    def interval(given: Any) -> str:
        return f"{100 * given.low:.1f}–{100 * given.high:.1f}"

    def difference(given: Any) -> str:
        return f"{given.points:+.1f} [{given.low:+.1f}, {given.high:+.1f}]"

    return [
        f"{100 * one.before:.1f}",
        interval(one.before_interval),
        f"{100 * one.after:.1f}",
        interval(one.after_interval),
        difference(one.gain),
        "" if one.lead is None else difference(one.lead),
    ]
