"""What `/openapi.json` says of the addresses: the contract of the server, kept by its tests."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from metaformer.deploy.server.body import FIELD, FORM, RAW
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
JSON, PNG = "application/json", "image/png"


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
IMAGE: Final = {
    "required": True,
    "content": {
        FORM: {"schema": ref("Form")},
        "image/*": {"schema": BINARY},
        RAW: {"schema": BINARY},
    },
}
"""An image: a form with the field `image`, or the body itself."""
QUESTION: Final[list[Schema]] = [
    {"name": "index", "in": "query", "required": True, "schema": INDEX, "description": "the class"},
    {
        "name": "box",
        "in": "query",
        "schema": TEXT,
        "description": "left, top, right and bottom of an object in pixels, with commas between",
    },
]


def document(models: Sequence[str], files: Sequence[str]) -> Schema:
    """The description of a server.

    Args:
        models: names of its networks.
        files: names of the page's files.
    """
    one = [
        {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "enum": list(models)}}
    ]
    drawn = {JSON: ref("Prediction"), PNG: BINARY}
    tensors = {JSON: ref("InferResponse"), RAW: BINARY}
    asked = {"required": True, "content": {JSON: {"schema": ref("InferRequest")}, RAW: {"schema": BINARY}}}
    names = {"type": "string", "enum": list(files)}
    static = [{"name": "file", "in": "path", "required": True, "schema": names}]
    paths = {
        "/": _get("the page for people", {"text/html": TEXT}),
        "/static/{file}": _get("a file of the page", {"*/*": BINARY}, static, 404),
        "/openapi.json": _get("this description", {JSON: {"type": "object"}}),
        "/metrics": _get("counts and durations, for Prometheus", {"text/plain": TEXT}),
        "/models": _get("the networks, and the limits of requests", {JSON: ref("Models")}),
        "/predict": _post("predict with the first network", IMAGE, drawn),
        "/predict/{model}": _post("predict; with `Accept: image/png` drawn on the image", IMAGE, drawn, one),
        "/explain/{model}": _post(
            "what the network looks at for a class: a gray image, 255 where most",
            IMAGE,
            {PNG: BINARY},
            [*one, *QUESTION],
            501,
        ),
        "/v2": _get("the server, by the Open Inference Protocol v2", {JSON: ref("Server")}),
        "/v2/health/live": _get("whether the server runs", {JSON: ref("Live")}),
        "/v2/health/ready": _ready("whether all networks answer", ref("Ready")),
        "/v2/models/{model}": _get("inputs and outputs of a network", {JSON: ref("Model")}, one, 404),
        "/v2/models/{model}/ready": _ready("whether a network answers", ref("ModelReady"), one, 404),
        "/v2/models/{model}/infer": _post("tensors in, tensors out", asked, tensors, one),
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "metaformer serve", "version": "1"},
        "paths": paths,
        "components": {"schemas": dict(SCHEMAS)},
    }


def _responses(content: Mapping[str, Schema], errors: Sequence[int]) -> dict[str, Any]:
    answers = {
        str(status): {
            "description": HTTPStatus(status).phrase.lower(),
            "content": {JSON: {"schema": ref("Error")}},
        }
        for status in sorted({*ALWAYS, *errors})
    }
    good = {
        "description": "the answer",
        "content": {kind: {"schema": schema} for kind, schema in content.items()},
    }
    return {"200": good, **answers}


def _get(
    summary: str, content: Mapping[str, Schema], parameters: Sequence[Schema] = (), *errors: int
) -> dict[str, Any]:
    return {
        "get": {"summary": summary, "parameters": [*parameters], "responses": _responses(content, errors)}
    }


def _post(
    summary: str,
    body: Schema,
    content: Mapping[str, Schema],
    parameters: Sequence[Schema] = (),
    *errors: int,
) -> dict[str, Any]:
    responses = _responses(content, [*COMPUTED, *errors])
    return {
        "post": {"summary": summary, "parameters": [*parameters], "requestBody": body, "responses": responses}
    }


def _ready(summary: str, schema: Schema, parameters: Sequence[Schema] = (), *errors: int) -> dict[str, Any]:
    """A state, which is also the body of the answer that it is not ready."""
    found = _get(summary, {JSON: schema}, parameters, *errors)
    unready = {"description": "not ready", "content": {JSON: {"schema": {"anyOf": [schema, ref("Error")]}}}}
    found["get"]["responses"]["503"] = unready
    return found
