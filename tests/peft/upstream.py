"""Runs the tests in PEFT's sdist, unmodified, with bishare's configs beside each of VeRA's: `make test-peft`.

    python tests/peft/upstream.py 0.21.0 -k "TestDecoderModels and ke"

A test that VeRA passes is one that bishare is to pass, for each spec. The table of known.md names
those that it does not, and the run fails for any other. This is also the plugin that pytest loads for it.
"""

import fnmatch
import os
import re
import subprocess
import sys
import tarfile
import types
from dataclasses import InitVar, dataclass, make_dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
CACHE = Path(os.environ.get("BISHARE_CACHE", REPOSITORY / ".cache")) / "peft-tests"
KNOWN = Path(__file__).with_name("known.md")
FILES = [
    f"tests/test_{name}.py"
    for name in (
        *("decoder_models", "encoder_decoder_models", "feature_extraction_models"),
        *("seq_classifier", "token_classification_qa", "custom_models"),
        *("config", "low_level_api", "other"),
    )
]

SPECS = {
    "lora": "spec lora\ntarget attention_inputs\ndropout 0.05\nshare local per module rank 4\n",
    "ke": (
        "spec ke\ntarget attention_inputs\nshare local per module rank 2\n"
        "share intra per layer rank 2 via KE(size = 8)\nshare inter per model rank 4 via KE(size = 8)\n"
    ),
    "ss": (
        "spec ss\ntarget attention_inputs\nshare local per module rank 2\n"
        "share intra per layer rank 2 via SS\nshare inter per model rank 4 via SS\n"
    ),
    "own_vera": (
        "spec own_vera\ntarget attention_inputs\ndropout 0.05\n"
        "share vera per model rank 8 via SS(slice = leading)\n"
        "    init A kaiming_normal, B kaiming_normal\n    freeze A, B\n    gain rank init 0.1, out init 0\n"
    ),
    "norms": "spec norms\ntarget attention_inputs\ntrain norms\nshare local per module rank 2\n",
    "experts": (
        "spec experts\ntarget attention_inputs, parent experts\nshare local per module rank 2\n"
    ),
}
"""By the names that their tests get; the last is for the mixture alone."""

MIXTURE = "bishare/tiny-random-MixtralForCausalLM"
HUB = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": ("opt", "OPTForCausalLM"),
    "peft-internal-testing/opt-125m": ("opt", "OPTForCausalLM"),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": ("gpt2", "GPT2LMHeadModel"),
    "hf-internal-testing/tiny-random-gpt2": ("gpt2", "GPT2LMHeadModel"),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": ("gptj", "GPTJForCausalLM"),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": ("llama", "LlamaForCausalLM"),
    "peft-internal-testing/tiny-dummy-qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": ("gemma3_text", "Gemma3ForCausalLM"),
    "hf-internal-testing/tiny-random-MistralForCausalLM": ("mistral", "MistralForCausalLM"),
    MIXTURE: ("mixtral", "MixtralForCausalLM"),
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated": ("t5", "T5ForConditionalGeneration"),
    "peft-internal-testing/tiny-random-t5": ("t5", "T5ForConditionalGeneration"),
    "peft-internal-testing/tiny-random-BartForConditionalGeneration": ("bart", "BartForConditionalGeneration"),
    "peft-internal-testing/tiny-random-BertModel": ("bert", "BertModel"),
    "peft-internal-testing/tiny-random-RobertaModel": ("roberta", "RobertaModel"),
    "peft-internal-testing/tiny-random-DebertaModel": ("deberta_1", "DebertaModel"),
    "peft-internal-testing/tiny-random-DebertaV2Model": ("deberta", "DebertaV2Model"),
    "peft-internal-testing/tiny-random-BertForSequenceClassification": ("bert", "BertForSequenceClassification"),
    "peft-internal-testing/tiny-random-RobertaForSequenceClassification": ("roberta", "RobertaForSequenceClassification"),
    "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2": ("llama", "LlamaForSequenceClassification"),
}  # fmt: skip
"""What PEFT's tests fetch: the family and the class of the tiny model that stands for it."""

COMMIT = "0" * 40


def fill_hub(cache):
    """Write tiny models as `huggingface_hub` keeps what it has fetched."""
    import torch
    import transformers

    # PEFT's `tests` is the one that is imported by that name.
    sys.path.append(str(REPOSITORY / "tests" / "support"))
    from families import _COMMON, TINY_FAMILIES, TINY_MIXTURES, TINY_TOWERS, TinyFamily

    families = {**TINY_FAMILIES, **TINY_MIXTURES, **TINY_TOWERS}
    families["gptj"] = TinyFamily("gptj", {**families["gpt2"].config, "rotary_dim": 4})
    families["gemma3_text"] = TinyFamily("gemma3_text", families["gemma2"].config)
    families["deberta_1"] = TinyFamily("deberta", _COMMON)
    for repository, (family, architecture) in HUB.items():
        folder = cache / f"models--{repository.replace('/', '--')}"
        if (folder / "refs" / "main").is_file():
            continue
        tiny = families[family]
        config = transformers.AutoConfig.for_model(tiny.model_type, **tiny.config)
        torch.manual_seed(0)
        getattr(transformers, architecture)(config).save_pretrained(folder / "snapshots" / COMMIT)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(COMMIT)


def fetch(version):
    """Return the folder of an sdist of PEFT, downloaded once."""
    folder = CACHE / f"peft-{version}"
    if not folder.is_dir():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        pip += ["--no-deps", "--no-binary", ":all:", "--dest", str(CACHE)]
        subprocess.run([*pip, f"peft=={version}"], check=True)
        with tarfile.open(CACHE / f"peft-{version}.tar.gz") as archive:
            archive.extractall(CACHE, filter="data")
        # It is in PEFT's repository, and not in the sdist.
        (folder / "tests" / "__init__.py").touch()
    return folder


def main(version, *arguments):
    """Run the tests of one version of PEFT, with that version."""
    folder = fetch(version)
    hub = CACHE / "hub"
    fill_hub(hub)
    paths = [folder / "src", REPOSITORY, Path(__file__).parent]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "HF_HUB_CACHE": str(hub),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-m", "pytest", "-p", "upstream", "-p", "no:cacheprovider", "-q"]
    command += ["-c", os.devnull, "--rootdir", ".", "--tb=short", "-W", "ignore", *arguments]
    if not any(argument.startswith("tests/") for argument in arguments):
        command += FILES
    return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


# The plugin -------------------------------------------------------------------------------------------------


class _Everything(dict):
    """What `hub_online_once` has fetched: all there is."""

    def __contains__(self, _):
        return True

    def __missing__(self, _):
        return 0


def pytest_configure(config):
    if "diffusers" not in sys.modules:
        # They import it for an `isinstance`; nothing of it runs here.
        module = types.ModuleType("diffusers")
        module.__spec__ = ModuleSpec("diffusers", None)
        module.StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})
        sys.modules["diffusers"] = module
    config.addinivalue_line("markers", "single_gpu_tests: of PEFT")
    config.addinivalue_line("markers", "multi_gpu_tests: of PEFT")
    config.addinivalue_line("markers", "regression: of PEFT")
    config.addinivalue_line("markers", "bitsandbytes: of PEFT")
    config.pluginmanager.register(_Matrix(), "bishare-matrix")


def _ours():
    """Make configs of bishare that take what PEFT's tests give to every config, one for each spec."""
    from bishare_dsl.peft import BishareConfig, BishareModel

    @dataclass
    class Config(BishareConfig):
        init_weights: InitVar[bool] = True

        def __post_init__(self, init_weights):
            self._random = not init_weights
            targets, self.target_modules = self.target_modules, None
            if "DebertaModel" in str(self.base_model_name_or_path):
                # Its modules have names of their own; `in_proj` is refused (BS403).
                targets = ["dense"]
            if targets is not None:
                several = [targets] if isinstance(targets, str) else targets
                names = ", ".join(f'path "{name}"' if "." in name else name for name in several)
                self.spec = re.sub("target .*", f"target {names}", str(self.spec), count=1)
            super().__post_init__()

    inject = BishareModel.inject_adapter

    def inject_random(self, model, adapter_name, *args, **kwargs):
        inject(self, model, adapter_name, *args, **kwargs)
        if getattr(self.peft_config[adapter_name], "_random", False):
            randomize_adapter(model.bishare[adapter_name])

    BishareModel.inject_adapter = inject_random
    # A test that is given a class alone gives it no spec.
    return {
        text: make_dataclass(f"Config_{name}", [("spec", str, text)], bases=(Config,))
        for name, text in SPECS.items()
    }


def randomize_adapter(adapter):
    """Give the tensors that train values that do something."""
    import torch

    for name, parameter in adapter.parts.tensors().items():
        if adapter.plan.tensor[name].trainable and parameter.device.type != "meta":
            with torch.no_grad():
                parameter.add_(torch.randn(parameter.shape).to(parameter) * 0.2)


class _Matrix:
    """Puts bishare's configs beside VeRA's, keeps the tests of both, and counts."""

    def __init__(self):
        from peft import VeraConfig

        self.vera, self.configs = VeraConfig, _ours()
        self.seen = set()
        self.known = [*_known()]
        self.outcomes = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_generate_tests(self, metafunc):
        utilities = sys.modules.get("tests.testing_utils")
        if utilities is not None:
            utilities._HUB_MODEL_ACCESSES = _Everything()
        for mark in metafunc.definition.iter_markers("parametrize"):
            values = mark.args[1] if len(mark.args) > 1 else mark.kwargs.get("argvalues")
            if isinstance(values, list) and id(values) not in self.seen:
                self.seen.add(id(values))
                self._kept = [*getattr(self, "_kept", ()), values]  # So that no id is used again.
                values[:] = list(self._beside(values))

    def _beside(self, values):
        for value in values:
            parts = _parts(value)
            if not any(part is self.vera or isinstance(part, self.vera) for part in parts):
                yield value
                if value == "trl-internal-testing/tiny-random-LlamaForCausalLM":
                    yield MIXTURE
                continue
            yield pytest.param(*parts, id=_id("vera", parts))
            for name, text in SPECS.items():
                yield pytest.param(
                    *(self._translate(part, text) for part in parts), id=_id(name, parts)
                )

    def _translate(self, part, text):
        if part is self.vera:
            return self.configs[text]
        if isinstance(part, self.vera):
            return self.configs[text](task_type=part.task_type)
        if isinstance(part, dict):
            kept = ("task_type", "target_modules", "modules_to_save", "init_weights")
            return {key: part[key] for key in kept if key in part}
        return part

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, config, items):
        kept, others = [], []
        for item in items:
            name, where = _spec_of(item.name), item.name
            fits = name == "vera" or (
                name is not None and (name == "experts") == (MIXTURE in where)
            )
            # Plain models have no norms.
            fits &= name != "norms" or "test_custom_models" not in item.nodeid
            (kept if fits else others).append(item)
            for pattern, specs, reason in self.known:
                if name in specs and fnmatch.fnmatchcase(_key(item.nodeid), pattern):
                    item.add_marker(pytest.mark.xfail(reason=reason, strict=False))
        items[:] = kept
        config.hook.pytest_deselected(items=others)

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            name = _spec_of(report.nodeid)
            assert name is not None
            key = _key(report.nodeid)
            text = ""
            if report.failed:
                text = str(report.longrepr).strip().splitlines()[-1]
            outcome = (
                "refused" if hasattr(report, "wasxfail") and report.skipped else report.outcome
            )
            self.outcomes.setdefault(key, {}).setdefault(name, (outcome, text))

    def pytest_terminal_summary(self, terminalreporter):
        write = terminalreporter.write_line
        passed = {
            key for key, found in self.outcomes.items() if found.get("vera", ("",))[0] == "passed"
        }
        for name in SPECS:
            of_it = [
                key for key in passed if self.outcomes[key].get(name, ("skipped",))[0] != "skipped"
            ]
            good = [key for key in of_it if self.outcomes[key][name][0] == "passed"]
            write(f"{name}: {len(good)} of {len(of_it)} that VeRA passes")
            for key in sorted(set(of_it) - set(good)):
                outcome, text = self.outcomes[key][name]
                if outcome == "failed":
                    write(f"  failed {key} {text}")


def _known():
    """Yield the rows of the table: a pattern of tests, the specs, and why these do not pass it."""
    for line in KNOWN.read_text().splitlines():
        if line.startswith("| `"):
            pattern, specs, reason = (cell.strip() for cell in line.strip("|").split("|"))
            yield f"tests/test_{pattern.strip('`')}", specs.split(", "), reason


def _parts(value):
    if hasattr(value, "values") and hasattr(value, "marks"):  # pytest.param
        return tuple(value.values)
    return value if isinstance(value, tuple) else (value,)


def _id(name, parts):
    texts = [part for part in parts if isinstance(part, str)]
    return f"as:{name}" + "".join(f"-{text}" for text in texts)


def _spec_of(nodeid):
    found = re.search(r"\bas:([a-z_]+)", nodeid)  # pytest numbers ids that are alike.
    return found[1] if found else None


def _key(nodeid):
    return re.sub(r"\bas:[a-z_]+", "as:", nodeid)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
