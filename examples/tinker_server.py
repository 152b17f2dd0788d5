"""Serve training for many tenants of one model over HTTP, to the `tinker` SDK (0.38).

    pip install bishare[train] tinker==0.38.0 starlette uvicorn
    export TINKER_SERVER_KEY=tml-my-secret
    python examples/tinker_server.py --model ./my-checkpoint --spec out/library --store states

    client = tinker.ServiceClient(base_url="http://127.0.0.1:8000", api_key="tml-my-secret")
    training = client.create_lora_training_client(base_model="./my-checkpoint", rank=8).result()

Each training client is a tenant, an adapter of the spec. Start it from a finished library, and a tenant has
the library's private numbers alone. Rows of a tenant run in a forward of their own, so its losses do not
depend on other tenants. States that a client saves are files in `--store`, and a restarted server reads them.

It supports create, forward, forward_backward (cross_entropy, importance_sampling, ppo, custom), optim_step by
AdamW, save_state, load_state with or without the optimizer, save_weights_for_sampler and sample. Anything
else fails with the SDK's `RequestFailedError`, or with the status 404. The SDK's source is the protocol.
"""

import argparse
import asyncio
import hmac
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import uvicorn
from google.protobuf.message import DecodeError
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tenants import FILE, Example, Tenants
from tinker import types
from tinker.proto import tinker_public_pb2 as pb
from tinker.proto.response_conv import _tensor_data_from_proto
from tinker.types.save_weights_for_sampler_response import SaveWeightsForSamplerResponseInternal
from transformers import AutoModelForCausalLM

from bishare_dsl.diagnostics import BishareError
from bishare_dsl.train import TrainError

HOLD = 40.0
"""Seconds to hold a request for a result; the SDK waits 45."""
KEPT = 4096
"""The number of results that can be fetched again."""
MOST = 2**26
"""The largest number of bytes of a request."""
SCRATCH = "sampler"
"""The tenant whose values are replaced by those to sample from."""


class RefusedError(Exception):
    """A request that this server does not fulfil."""


class Server:
    """The state of a server: tenants whose shared tensors do not train, and the folder of saved states."""

    def __init__(self, tenants: Tenants, base: str, store: Path, most: int) -> None:
        self.tenants, self.base, self.store, self.most = tenants, base, store, most
        self.rank = max(term.rank for term in tenants.plan.update_terms)
        tenants.add(SCRATCH)
        self.names: dict[str, str] = {}  # The tenant of each training client, by its id.
        self.samplers: dict[
            str, str | None
        ] = {}  # The path of each sampling session; None is the base.
        self.next: dict[str, int] = {}  # The number of each training client's next request.
        self.turn = asyncio.Condition()
        self.results: OrderedDict[str, asyncio.Task[Any]] = OrderedDict()
        self.snapshots = tempfile.TemporaryDirectory(prefix="bishare-samplers-")

    def later(
        self, key: str, make: Callable[[], Any], model: str = "", number: int = 0
    ) -> Response:
        """Compute a result in a thread, after the model's earlier ones. A repeated request is the same."""

        async def run() -> Any:
            async with self.turn:
                await self.turn.wait_for(lambda: self.next.get(model, 1) >= number)
                try:
                    return await asyncio.to_thread(make)
                except (RefusedError, BishareError, ValidationError, DecodeError) as error:
                    category, said = types.RequestErrorCategory.User, str(error)
                except Exception as error:  # noqa: BLE001 - a status of 500 would be repeated for minutes
                    category, said = types.RequestErrorCategory.Server, repr(error)
                finally:
                    if number:
                        self.next[model] = number + 1
                    self.turn.notify_all()
                return types.RequestFailedResponse(error=said, category=category)

        if key not in self.results:
            self.results[key] = asyncio.create_task(run())
        while len(self.results) > KEPT and next(iter(self.results.values())).done():
            self.results.popitem(last=False)
        return reply(types.UntypedAPIFuture(request_id=key, model_id=model or None))

    # The calls, in a thread, one at a time ------------------------------------------------------------------

    def create_model(
        self, asked: types.CreateModelRequest, model: str
    ) -> types.CreateModelResponse:
        config = asked.lora_config
        if asked.base_model != self.base:
            raise RefusedError(
                f"there is no base {asked.base_model!r}: this server has {self.base!r}"
            )
        if config and config.rank != self.rank:
            raise RefusedError(
                f"the spec of this server has rank {self.rank}: pass rank={self.rank}"
            )
        if config and not (config.train_mlp and config.train_attn and config.train_unembed):
            raise RefusedError("the spec of this server says which modules train")
        if asked.optimizer_config.type != "adamw":
            raise RefusedError("the optimizer of this server is AdamW")
        self.add(model, (config and config.seed) or 0)
        return types.CreateModelResponse(model_id=model)

    def add(self, model: str, seed: int = 0) -> None:
        if len(self.names) >= self.most:
            raise RefusedError(
                f"this server has its {self.most} tenants: restart it with a larger --most"
            )
        self.tenants.add(name := f"tenant{len(self.names)}", seed)
        self.names[model] = name

    def forward_backward(self, body: bytes) -> pb.ForwardBackwardOutput:
        asked = pb.ForwardBackwardRequest.FromString(body)
        config = {name: value.number for name, value in asked.loss_fn_config_v2.items()}
        settings = {}
        if asked.loss_fn == "ppo":
            clip = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
            settings["clip"] = tuple(config.pop(name, usual) for name, usual in clip.items())
        if config:
            raise RefusedError(f"{asked.loss_fn} has no setting {min(config)!r} here")
        rows = [self.example(datum, self.names[asked.model_id]) for datum in asked.data]
        backward = not asked.forward_only
        found = self.tenants.forward_backward(rows, asked.loss_fn, backward=backward, **settings)
        if found.refused:
            raise RefusedError("the gradient is not finite: nothing was added")
        metrics = {"loss:sum": sum(found.losses.values())}
        output = pb.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord", metrics=metrics)
        parts = [np.asarray(part, np.float32) for part in found.logprobs]
        field = output.loss_fn_outputs.add(num_datums=len(parts)).fields["logprobs"]
        field.dtype, field.data = pb.DTYPE_FLOAT32, b"".join(part.tobytes() for part in parts)
        ends = np.cumsum([0, *(part.nbytes for part in parts)], dtype=np.int64)
        field.offsets = ends.tobytes()
        return output

    def example(self, datum: pb.Datum, name: str) -> Example:
        if any(not chunk.HasField("encoded_text") for chunk in datum.model_input):
            raise RefusedError("only text is supported")
        chunks = [np.frombuffer(c.encoded_text.tokens, np.int32) for c in datum.model_input]
        given = {
            key: _tensor_data_from_proto(tensor).to_numpy().reshape(-1).tolist()
            for key, tensor in datum.loss_fn_inputs.items()
        }
        targets, tokens = given.pop("target_tokens", []), np.concatenate(chunks).tolist()
        if unknown := given.keys() - {"weights", "logprobs", "advantages"}:
            raise RefusedError(f"the losses of this server read no {min(unknown)!r}")
        return Example(tokens, tenant=name, targets=targets, **given)

    def optim_step(self, asked: types.OptimStepRequest) -> types.OptimStepResponse:
        adam, name = asked.optim_params, self.names[asked.model_id]
        if not isinstance(adam, types.AdamParams):
            raise RefusedError("the optimizer of this server is AdamW")
        how: dict[str, Any] = {"betas": (adam.beta1, adam.beta2), "weight_decay": adam.weight_decay}
        how |= {"eps": adam.eps, "max_norm": max(adam.grad_clip_norm, 0.0)}
        norms = self.tenants.step(name, learning_rate=adam.learning_rate, **how)
        return types.OptimStepResponse(metrics={"grad_norm:mean": norms[name]})

    def folder(self, path: str) -> Path:
        """Return the folder of a saved state; no path points out of the store."""
        root = Path(self.snapshots.name) if path.startswith("snapshot:") else self.store
        return root / quote(path, safe="")

    def has(self, path: str) -> bool:
        return (self.folder(path) / FILE).exists()

    def save_weights(self, asked: types.SaveWeightsRequest) -> types.SaveWeightsResponse:
        path = f"tinker://{asked.model_id}/weights/{asked.path or f'step-{asked.seq_id}'}"
        if self.has(path) and not asked.overwrite:
            raise RefusedError(f"{path} exists: pass overwrite=True, or another name")
        self.tenants.save(self.names[asked.model_id], self.folder(path))
        return types.SaveWeightsResponse(path=path, type="save_weights")

    def load_weights(
        self, asked: types.LoadWeightsRequest, model: str = ""
    ) -> types.LoadWeightsResponse:
        model = model or str(asked.model_id)
        if not self.has(asked.path):
            raise RefusedError(f"there is no {asked.path}")
        if model not in self.names:
            self.add(model)
        self.tenants.load(self.names[model], self.folder(asked.path), optimizer=asked.optimizer)
        return types.LoadWeightsResponse(path=asked.path, model_id=model, type="load_weights")

    def save_weights_for_sampler(self, asked: types.SaveWeightsForSamplerRequest) -> Any:
        if asked.kind != "snapshot":
            raise RefusedError("only snapshots can be sampled from")
        session = f"{asked.model_id}-sampler{asked.sampling_session_seq_id}"
        path = f"tinker://{asked.model_id}/sampler_weights/{asked.path}"
        path = f"snapshot:{session}" if asked.path is None else path
        self.tenants.save(self.names[asked.model_id], self.folder(path))
        told: dict[str, Any] = {"path": path}
        if asked.path is None:
            self.samplers[session], told = path, {"sampling_session_id": session}
        return SaveWeightsForSamplerResponseInternal(**told, type="save_weights_for_sampler")

    def sample(self, asked: types.SampleRequest) -> pb.SampleResponse:
        how, stop = asked.sampling_params, asked.sampling_params.stop
        if isinstance(stop, str) or any(isinstance(end, str) for end in stop or ()):
            raise RefusedError("stop sequences are token ids here")
        more = ("topk_prompt_logprobs", "topk_sample_logprobs", "prompt_alt_tokens_k")
        more += ("target_prompt_logprobs", "prompt_logprobs_last_n", "record_stability_info")
        if unknown := [name for name in more if getattr(asked, name)]:
            raise RefusedError(f"`{unknown[0]}` is not supported")
        if any(chunk.type != "encoded_text" for chunk in asked.prompt.chunks):
            raise RefusedError("only text is supported")
        tenant, path = None, self.samplers[str(asked.sampling_session_id)]
        if path is not None:
            tenant = SCRATCH
            self.tenants.load(SCRATCH, self.folder(path), optimizer=False)
        prompt, output = asked.prompt.to_ints(), pb.SampleResponse()
        for sample in self.tenants.sample(
            [prompt] * asked.num_samples,
            tenant,
            max_tokens=how.max_tokens or 128,
            temperature=how.temperature,
            top_k=max(how.top_k, 0),
            top_p=how.top_p,
            stop=None if stop is None else [int(end) for end in stop],
            seed=how.seed,
        ):
            row = output.sequences.add(tokens=np.array(sample.tokens, np.int32).tobytes())
            row.logprobs = np.array(sample.logprobs, np.float32).tobytes()
            row.stop_reason = pb.STOP_REASON_STOP if sample.stopped else pb.STOP_REASON_LENGTH
        if asked.prompt_logprobs:
            found = self.tenants.forward_backward([Example(prompt, tenant=tenant)], backward=False)
            values = [np.nan, *found.logprobs[0].tolist()]
            output.prompt_logprobs = np.array(values, np.float32).tobytes()
        return output


# Routes -----------------------------------------------------------------------------------------------------


def reply(model: Any) -> Response:
    """Answer with a type of the SDK."""
    return JSONResponse(model.model_dump(mode="json"))


def routes(server: Server) -> list[Route]:
    """Return the routes of the SDK's client: each has a type of the SDK, and a function of it."""

    def in_order(make: Callable[[Any], Any]) -> Callable[[Any], Response]:
        def route(asked: Any) -> Response:
            if (model := asked.model_id) not in server.names:
                raise LookupError(
                    f"there is no training client {model!r}: it ended with the server"
                )
            return server.later(f"{model}:{asked.seq_id}", lambda: make(asked), model, asked.seq_id)

        return route

    def first(make: Callable[[Any, str], Any]) -> Callable[[Any], Response]:
        def route(asked: Any) -> Response:
            model = (
                f"{asked.session_id}:train:{asked.model_seq_id}"  # The client computes the same id.
            )
            return server.later(f"{model}:create", lambda: make(asked, model))

        return route

    def load_weights(asked: types.LoadWeightsRequest) -> Response:
        return (first if asked.session_id else in_order)(server.load_weights)(asked)

    def create_session(asked: types.CreateSessionRequest) -> Response:
        return reply(types.CreateSessionResponse(session_id=f"s-{os.urandom(8).hex()}"))

    def get_info(asked: types.GetInfoRequest) -> Response:
        data = types.ModelData(arch="bishare", model_name=server.base, tokenizer_id=server.base)
        info: dict[str, Any] = {"type": "get_info", "model_id": asked.model_id, "model_data": data}
        info |= {"is_lora": True, "lora_rank": server.rank, "model_name": server.base}
        return reply(types.GetInfoResponse(**info))

    def create_sampling_session(asked: types.CreateSamplingSessionRequest) -> Response:
        path = asked.model_path
        if not (server.has(path) if path else asked.base_model == server.base):
            raise LookupError(f"there is no {path or asked.base_model}")
        session = f"{asked.session_id}-{asked.sampling_session_seq_id}"
        server.samplers[session] = path
        return reply(types.CreateSamplingSessionResponse(sampling_session_id=session))

    def asample(asked: types.SampleRequest) -> Response:
        if (session := asked.sampling_session_id) not in server.samplers:
            raise LookupError(f"there is no sampling session {session!r}: it ended with the server")
        key = f"{session}:{asked.seq_id}"
        server.later(key, lambda: server.sample(asked))
        names = [f"{key}/{number}" for number in range(asked.num_samples)]
        return reply(types.UntypedAPIFuture(request_id=key, sample_sequence_ids=names))

    async def forward_backward(request: Request) -> Response:
        body = await request.body()
        make = in_order(lambda asked: server.forward_backward(body))
        return make(pb.ForwardBackwardRequest.FromString(body))

    async def retrieve_future(request: Request) -> Response:
        asked = types.FutureRetrieveRequest.model_validate(await request.json())
        if (task := server.results.get(asked.request_id)) is None:
            return JSONResponse({"detail": "this result is no longer there"}, 410)
        if not (await asyncio.wait([task], timeout=HOLD))[0]:
            return JSONResponse({"queue_state": "active"}, 408)
        result = task.result()
        if isinstance(result, (pb.ForwardBackwardOutput, pb.SampleResponse)):
            return Response(result.SerializeToString(), media_type="application/x-protobuf")
        return reply(result)

    def typed(kind: Any, route: Callable[[Any], Response]) -> Callable[[Request], Any]:
        async def respond(request: Request) -> Response:
            return route(kind.model_validate(await request.json()))

        return respond

    def fixed(answer: Mapping[str, Any]) -> Callable[[Request], Any]:
        async def respond(request: Request) -> Response:
            return JSONResponse(answer)

        return respond

    posts = {
        "client/config": fixed(types.ClientConfigResponse().model_dump(mode="json")),
        "client/dynamic_config": fixed(types.ClientDynamicConfigResponse().model_dump(mode="json")),
        "session_heartbeat": fixed({"type": "session_heartbeat"}),
        "telemetry": fixed({"status": "accepted"}),
        "sessions/{name}/finish": fixed({}),
        "create_session": typed(types.CreateSessionRequest, create_session),
        "create_model": typed(types.CreateModelRequest, first(server.create_model)),
        "get_info": typed(types.GetInfoRequest, get_info),
        "forward_backward": forward_backward,
        "optim_step": typed(types.OptimStepRequest, in_order(server.optim_step)),
        "save_weights": typed(types.SaveWeightsRequest, in_order(server.save_weights)),
        "load_weights": typed(types.LoadWeightsRequest, load_weights),
        "save_weights_for_sampler": typed(
            types.SaveWeightsForSamplerRequest, in_order(server.save_weights_for_sampler)
        ),
        "create_sampling_session": typed(
            types.CreateSamplingSessionRequest, create_sampling_session
        ),
        "asample": typed(types.SampleRequest, asample),
        "retrieve_future": retrieve_future,
    }
    sampler = fixed({"sampler_id": "sampler", "base_model": server.base, "model_path": None})
    models = types.GetServerCapabilitiesResponse(
        supported_models=[types.SupportedModel(model_name=server.base)]
    )
    gets = {
        "get_server_capabilities": fixed(models.model_dump(mode="json")),
        "samplers/{id:path}": sampler,
    }
    return [Route(f"/api/v1/{path}", f, methods=["POST"]) for path, f in posts.items()] + [
        Route(f"/api/v1/{path}", f) for path, f in gets.items()
    ]


class Door:
    """Lets requests with the key in, and none that are too large."""

    def __init__(self, app: Any, key: str) -> None:
        self.app, self.key = app, key.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        headers = dict(scope.get("headers", ()))
        length, refusal = headers.get(b"content-length", b"0"), None
        if scope["type"] == "http" and not hmac.compare_digest(
            headers.get(b"x-api-key", b""), self.key
        ):
            refusal = JSONResponse({"detail": "the key is missing or wrong"}, 401)
        elif scope["type"] == "http" and (not length.isdigit() or int(length) > MOST):
            refusal = JSONResponse({"detail": f"a request has at most {MOST} bytes"}, 413)
        await (refusal or self.app)(scope, receive, send)


def application(server: Server, key: str) -> Door:
    """Return the ASGI application."""

    async def refused(request: Request, error: Exception) -> Response:
        return JSONResponse({"detail": str(error)}, 404 if isinstance(error, LookupError) else 422)

    kinds: Any = (ValidationError, DecodeError, LookupError, ValueError)
    return Door(
        Starlette(routes=routes(server), exception_handlers=dict.fromkeys(kinds, refused)), key
    )


def main(words: Sequence[str] | None = None) -> None:
    """Start the server."""
    parser = argparse.ArgumentParser(description="Serve training to the tinker SDK.")
    parser.add_argument("--model", required=True, help="a checkpoint folder or a Hub id")
    parser.add_argument("--spec", required=True, help="a spec, or the folder of a library")
    parser.add_argument("--store", type=Path, required=True, help="the folder of saved states")
    parser.add_argument("--most", type=int, default=64, help="the largest number of tenants")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args(words)
    key = os.environ.get("TINKER_SERVER_KEY", "")
    if not key.startswith("tml-") or len(key) < 8:
        parser.error("set TINKER_SERVER_KEY to the key of the clients, which begins with `tml-`")
    try:
        tenants = Tenants(AutoModelForCausalLM.from_pretrained(given.model), given.spec, apart=True)
    except (BishareError, TrainError, OSError) as error:
        parser.error(str(error))
    server = Server(tenants, given.model, given.store, given.most)
    if tenants.bank.common.numel():
        parser.error("tenants of this spec share tensors that train: give a finished library")
    uvicorn.run(application(server, key), host=given.host, port=given.port, log_level="warning")


if __name__ == "__main__":
    main()
