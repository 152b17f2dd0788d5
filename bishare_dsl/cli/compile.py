"""``bishare compile``: write a new adapter from a spec and a model's shapes, or print a stage."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from bishare_dsl.cli import options
from bishare_dsl.cli.files import check_out
from bishare_dsl.cli.reading import plan_of, read_spec
from bishare_dsl.cli.report import Report

if TYPE_CHECKING:
    from bishare_dsl.plan import Plan
    from bishare_dsl.rewrite.region import RegionGraphs

STAGES = ("spec", "plan", "graph", "code")


@click.command(
    "compile",
    epilog=options.examples(
        "bishare compile my.share --model llama-7b",
        "bishare compile bishare_ke --model llama-7b --set r_inter=32 --seed 1 --out ke32",
        "bishare compile bishare_ke --model llama-7b --emit graph | less",
    ),
)
@options.spec()
@options.model(required=False)
@options.values
@options.out("The folder to write; by default SPEC-MODEL.", required=False)
@options.seed
@click.option(
    "--emit", type=click.Choice(STAGES), help="Print this stage instead; spec needs no model."
)
@options.stored_dtype
@options.force
@click.pass_obj
def command(
    report: Report,
    file: str,
    model: str | None,
    params: dict[str, int | float | str],
    out: Path | None,
    seed: int,
    emit: str | None,
    dtype: str,
    force: bool,
) -> None:
    """Write an untrained adapter from a spec.

    Only the model's shapes are used, so a preset needs no download. The folder is named after spec and model.
    An existing folder is not overwritten without --force.

    --emit graph prints the torch.fx graphs of each distinct region between the compiler's passes. --emit code
    prints the resulting Python.
    """
    if emit == "spec":
        spec = read_spec(file)[0].with_params(params)
        report.data(spec=spec.model_dump(mode="json", by_alias=True))
        report.result(spec.model_dump_json(indent=2, by_alias=True))
        return
    resolved = plan_of(file, model, params, report)
    plan = resolved.plan
    if emit == "plan":
        report.data(plan=plan.model_dump(mode="json"))
        report.result(plan.model_dump_json(indent=2))
        return
    if emit is not None and model is not None:
        _explain(plan, model, emit, report)
        return
    name = f"{plan.spec}-{plan.base.name.rpartition('/')[2]}"
    out = out or Path(re.sub(r"[^\w.-]+", "-", name))
    seen = check_out(out, "compile", force=force)
    report.note("generating the tensors ...")
    from bishare_dsl.folder.files import save_adapter
    from bishare_dsl.initial.values import check_drawn, draw
    from bishare_dsl.rewrite.adapt import check_terms

    check_terms(plan)
    check_drawn(plan, "this command")
    tensors = draw(plan, seed)
    warnings = save_adapter(
        out,
        plan,
        tensors,
        resolved.text(),
        seed=seed,
        dtype=dtype,
        seen=seen,
        command="compile",
    )
    report.all(warnings)
    report.data(out=str(out), trainable=plan.trainable)
    report.result(str(out))
    report.note(plan.parameters_line)
    report.tell(plan)
    base = shlex.quote(plan.base.model_id or plan.base.name)
    folder = shlex.quote(str(out))
    report.note("it is untrained; train it, or load it in Python:")
    report.note(f"bishare train {folder} --model {base} --data FILES --output_dir DIR")
    report.note(f"model = bishare_dsl.load_adapter({str(out)!r}, model)")


def _explain(plan: Plan, model: str, emit: str, report: Report) -> None:
    report.note("building the model on the meta device ...")
    from bishare_dsl.models.load import meta_model
    from bishare_dsl.rewrite.adapt import compile_plan

    distinct: set[int] = set()
    stages: list[dict[str, str]] = []

    def tell(path: str, step: str | None, **programs: object) -> None:
        after = f" after {step}" if step else ""
        texts = {name: str(program) for name, program in programs.items()}
        stages.append({"region": path, **texts})
        if step:
            stages[-1]["after"] = step
        for name, program in programs.items():
            report.result(f"# {path}{after}: {name}\n{program}\n")

    def observe(path: str, step: str, region: RegionGraphs) -> None:
        if emit == "graph":
            tell(path, step, forward=region.forward, factors=region.assembly)

    compiled = compile_plan(meta_model(model), plan, observe)
    if emit == "code":
        for path, code, _ in compiled.regions:
            if id(code) not in distinct:
                distinct.add(id(code))
                tell(path, None, forward=code.forward.source, factors=code.assembly.source)
    report.data(**{emit: stages})
