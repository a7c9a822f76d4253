"""The addresses of the server, and what `/openapi.json` says of them: the contract that its tests keep."""

import re
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from metaformer.deploy.server.body import FIELD, FORM, RAW
from metaformer.deploy.server.reply import JSON
from metaformer.deploy.server.tensor import DATATYPES, MAX_INPUTS

Schema = dict[str, Any]
NUMBER: Final[Schema] = {"type": "number"}
TEXT: Final[Schema] = {"type": "string"}
INDEX: Final[Schema] = {"type": "integer", "minimum": 0}
BOOLEAN: Final[Schema] = {"type": "boolean"}
BINARY: Final[Schema] = {"type": "string", "format": "binary"}
ALWAYS: Final = (400, 408, 413, 431, 503)
"""Errors that every request may get: damaged, too slow, too large, its headers too large, too many."""
COMPUTED: Final = (404, 415, 500, 504)
"""Errors of requests that a network answers."""
PNG: Final = "image/png"


def array(items: Schema, **limits: int) -> Schema:
    """Schema of a list."""
    return {"type": "array", "items": items, **limits}


def fields(**properties: Schema) -> Schema:
    """Schema of an object; a field that may be missing ends in `_`."""
    required = [name for name in properties if not name.endswith("_")]
    named = {name.rstrip("_"): schema for name, schema in properties.items()}
    return {"type": "object", "properties": named, "required": required}


def or_null(schema: Schema) -> Schema:
    """The schema, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def ref(name: str) -> Schema:
    """A schema of `SCHEMAS`."""
    return {"$ref": f"#/components/schemas/{name}"}


NAMED: Final[Schema] = {"name": TEXT, "index": INDEX}
TENSOR: Final[Schema] = {
    "name": TEXT,
    "shape": array(INDEX, minItems=1, maxItems=8),
    "datatype": {"type": "string", "enum": list(DATATYPES.values())},
    "data_": array({}),
    "parameters_": {"type": "object"},
}
SCHEMAS: Final[Mapping[str, Schema]] = {
    "Error": fields(error=TEXT),
    "Classes": fields(classes=array(fields(**NAMED, score=NUMBER))),
    "Labels": fields(classes=array(fields(**NAMED, score=NUMBER, threshold=NUMBER))),
    "LabelMap": fields(labels=TEXT, classes=array(fields(**NAMED, color=TEXT, share=NUMBER))),
    "Objects": fields(
        objects=array(
            fields(
                **NAMED,
                score=NUMBER,
                box=array(NUMBER, minItems=4, maxItems=4),
                color=TEXT,
                mask=or_null(fields(size=array(INDEX, minItems=2, maxItems=2), counts=array(INDEX))),
            )
        )
    ),
    "Prediction": fields(
        model=TEXT,
        task=TEXT,
        image=fields(width=INDEX, height=INDEX),
        prediction={"anyOf": [ref(name) for name in ("Classes", "Labels", "LabelMap", "Objects")]},
        milliseconds=fields(decode=NUMBER, queue=NUMBER, network=NUMBER, encode=NUMBER, total=NUMBER),
    ),
    "Models": fields(
        models=array(
            fields(
                name=TEXT,
                task=or_null(TEXT),
                title=or_null(TEXT),
                classes=or_null(array(TEXT)),
                colors=or_null(array(TEXT)),
                thresholds=or_null(array(NUMBER)),
                draw_score=or_null(NUMBER),
                ready=BOOLEAN,
                explain=BOOLEAN,
            )
        ),
        max_upload=INDEX,
        max_pixels=INDEX,
        heat_colors=array(TEXT),
    ),
    "Form": fields(**{FIELD: BINARY}),
    "Server": fields(name=TEXT, version=TEXT, extensions=array(TEXT)),
    "Live": fields(live=BOOLEAN),
    "Ready": fields(ready=BOOLEAN, models={"type": "object", "additionalProperties": TEXT}),
    "ModelReady": fields(name=TEXT, ready=BOOLEAN, state=TEXT),
    "Model": fields(
        name=TEXT,
        versions=array(TEXT),
        platform=TEXT,
        inputs=array(fields(name=TEXT, datatype=TEXT, shape=array({"type": "integer"}))),
        outputs=array(fields(name=TEXT, datatype=TEXT, shape=array({"type": "integer"}))),
    ),
    "InferRequest": fields(
        id_=TEXT,
        parameters_={"type": "object"},
        inputs=array(fields(**TENSOR), minItems=1, maxItems=MAX_INPUTS),
        outputs_=array(fields(name=TEXT, parameters_={"type": "object"}), maxItems=MAX_INPUTS),
    ),
    "InferResponse": fields(
        model_name=TEXT,
        model_version=TEXT,
        id_=TEXT,
        outputs=array(fields(**TENSOR)),
    ),
}
IMAGE: Final = {FORM: ref("Form"), "image/*": BINARY, RAW: BINARY}
"""An image: a form with the field `image`, or the body itself."""
TENSORS: Final = {JSON: ref("InferRequest"), RAW: BINARY}
DRAWN: Final = {JSON: ref("Prediction"), PNG: BINARY}
QUESTION: Final[list[Schema]] = [
    {"name": "index", "in": "query", "required": True, "schema": INDEX, "description": "the class"},
    {
        "name": "box",
        "in": "query",
        "schema": TEXT,
        "description": "left, top, right and bottom of an object in pixels, with commas between",
    },
]


class Endpoint(NamedTuple):
    """An address."""

    path: str
    handler: str
    """Method of `Handlers`."""
    summary: str
    answer: Mapping[str, Schema]
    """By media type."""
    body: Mapping[str, Schema] | None = None
    """The same of the request's body; None for a GET."""
    query: Sequence[Schema] = ()
    errors: Sequence[int] = ()
    """Beside those that are usual."""
    unready: bool = False
    """Whether the answer also comes with the status 503."""

    @property
    def method(self) -> str:
        """GET or POST."""
        return "GET" if self.body is None else "POST"


ENDPOINTS: Final = (
    Endpoint("/", "index", "the page for people", {"text/html": TEXT}),
    Endpoint("/static/{file:path}", "static", "a file of the page", {"*/*": BINARY}),
    Endpoint("/openapi.json", "openapi", "this description", {JSON: {"type": "object"}}),
    Endpoint("/metrics", "metrics", "counts and durations, for Prometheus", {"text/plain": TEXT}),
    Endpoint("/models", "models", "the networks, and the limits of requests", {JSON: ref("Models")}),
    Endpoint("/predict", "predict_first", "predict with the first network", DRAWN, IMAGE),
    Endpoint(
        "/predict/{model}", "predict", "predict; with `Accept: image/png` drawn on the image", DRAWN, IMAGE
    ),
    Endpoint(
        "/explain/{model}",
        "explain",
        "what the network looks at for a class: a gray image, 255 where most",
        {PNG: BINARY},
        IMAGE,
        QUESTION,
        errors=(501,),
    ),
    Endpoint("/v2", "server", "the server, by the Open Inference Protocol v2", {JSON: ref("Server")}),
    Endpoint("/v2/health/live", "live", "whether the server runs", {JSON: ref("Live")}),
    Endpoint("/v2/health/ready", "ready", "whether all networks answer", {JSON: ref("Ready")}, unready=True),
    Endpoint("/v2/models/{model}", "model", "inputs and outputs of a network", {JSON: ref("Model")}),
    Endpoint(
        "/v2/models/{model}/ready",
        "model_ready",
        "whether a network answers",
        {JSON: ref("ModelReady")},
        unready=True,
    ),
    Endpoint(
        "/v2/models/{model}/infer",
        "infer",
        "tensors in, tensors out",
        {JSON: ref("InferResponse"), RAW: BINARY},
        TENSORS,
    ),
)
_IN_PATH: Final = re.compile(r"{(\w+)(?::path)?}")
"""A parameter of a path."""


def document(models: Sequence[str], files: Sequence[str]) -> Schema:
    """The description of a server.

    Args:
        models: names of its networks.
        files: names of the page's files.
    """
    names = {"model": models, "file": files}
    return {
        "openapi": "3.1.0",
        "info": {"title": "metaformer serve", "version": "1"},
        "paths": {
            _IN_PATH.sub(r"{\1}", one.path): {one.method.lower(): _operation(one, names)} for one in ENDPOINTS
        },
        "components": {"schemas": dict(SCHEMAS)},
    }


def _operation(one: Endpoint, names: Mapping[str, Sequence[str]]) -> Schema:
    parameters = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "enum": list(names[name])},
        }
        for name in _IN_PATH.findall(one.path)
    ]
    found: Schema = {
        "summary": one.summary,
        "parameters": [*parameters, *one.query],
        "responses": _responses(one),
    }
    if one.body is not None:
        found["requestBody"] = {"required": True, "content": _content(one.body)}
    return found


def _responses(one: Endpoint) -> Schema:
    named = (404,) if "{" in one.path else ()
    computed = () if one.body is None else COMPUTED
    responses = {
        str(status): {
            "description": HTTPStatus(status).phrase.lower(),
            "content": _content({JSON: ref("Error")}),
        }
        for status in sorted({*ALWAYS, *named, *computed, *one.errors})
    }
    if one.unready:
        either = {"anyOf": [one.answer[JSON], ref("Error")]}
        responses["503"] = {"description": "not ready", "content": _content({JSON: either})}
    return {"200": {"description": "the answer", "content": _content(one.answer)}, **responses}


def _content(schemas: Mapping[str, Schema]) -> Schema:
    return {kind: {"schema": schema} for kind, schema in schemas.items()}
