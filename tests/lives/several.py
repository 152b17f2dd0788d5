"""What PEFT does with several adapters of one model, by the tuner layer that its methods call."""

from bishare_dsl.compiler import make_plan, read_fitting
from bishare_dsl.peft.method import install

FIRST = "default"


class Several:
    """The adapters of an adapted model by name: one is active, the others' tensors stand beside its."""

    def __init__(self, model):
        self.model = model

    @property
    def names(self):
        return tuple(self.model.bishare.adapters)

    @property
    def active(self):
        [name] = self.model.bishare.active
        return name

    def add(self, spec, name, seed):
        install(self.model, make_plan(spec, self.model), seed, name)

    def load(self, folder, name):
        stored, _ = read_fitting(folder, self.model)
        install(self.model, stored, name=name)

    def switch(self, name):
        self.model.bishare.set_adapter(name)

    def delete(self, name):
        self.model.bishare.delete_adapter(name)

    def run(self, inputs, names):
        """Run a batch in which each row has an adapter of its own, or none."""
        with self.model.bishare.rows(names):
            return self.model(**inputs)
