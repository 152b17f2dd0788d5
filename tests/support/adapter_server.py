"""A server of named adapters that keeps a diary of its requests, in place of vLLM's."""

from contextlib import nullcontext
from pathlib import Path

from tests.support.served import serving


class AdapterServer:
    """A server that loads and unloads names, and finds the folder of each loaded name at every call."""

    def __init__(self):
        self.loaded, self.diary, self.refuses = {}, [], 200
        self.running = serving(self)
        self.url = self.running.__enter__().removesuffix("/v1")

    def answer(self, path, body):
        status = self.take(path, body)
        return status, "ok" if status == 200 else "no such thing"

    def take(self, path, body):
        assert all(folder.is_dir() for folder in self.loaded.values())
        name = body["lora_name"]
        if path == "/v1/load_lora_adapter":
            assert name not in self.loaded
            if self.refuses == 200:
                self.loaded[name] = Path(body["lora_path"])
            self.diary.append(("load", name))
            return self.refuses
        assert path == "/v1/unload_lora_adapter"
        self.diary.append(("unload", name))
        return 200 if self.loaded.pop(name, None) else 404

    def stop(self):
        self.running, running = nullcontext(), self.running
        running.__exit__(None, None, None)
