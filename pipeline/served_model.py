"""MLflow runs this file where a served model is loaded ("model from code"); nothing of ours imports it.

It knows no model. The logged config says what opens one, `opens: "module:function"`, and with which `settings`;
function(folders, settings) gets the logged folders by name and returns an object whose `predict` answers a list of rows
(dictionaries, None where a row has no value) with one dictionary each. Bytes leave as base64.
"""

import base64
from importlib import import_module
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd


class ServedModel(mlflow.pyfunc.PythonModel):
    """A table in, a table out."""

    def load_context(self, context: Any) -> None:
        """Open what the config names."""
        module, _, function = context.model_config["opens"].partition(":")
        folders = {name: Path(place) for name, place in context.artifacts.items()}
        self._opened = getattr(import_module(module), function)(folders, context.model_config["settings"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One answer a row, under the index of the question."""
        rows = [
            {column: None if pd.isna(value) else value for column, value in row.items()}
            for row in model_input.to_dict("records")
        ]
        answers = [{column: _plain(value) for column, value in row.items()} for row in self._opened.predict(rows)]
        return pd.DataFrame(answers, index=model_input.index)


def _plain(value: Any) -> Any:
    return base64.b64encode(value).decode("ascii") if isinstance(value, bytes) else value


mlflow.models.set_model(ServedModel())
