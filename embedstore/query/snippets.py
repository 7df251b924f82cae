"""Recipes for other applications: the same query in curl, Python, JavaScript and Go, ready to paste.

A snippet knows the alias, the URL and the values of one person. The key of the server comes from the
environment variable QDRANT_API_KEY where the snippet runs, and is never part of it.

Qdrant leaves the positives of a recommend query out of its answer only where the lookup names the
collection itself. Through an alias it does not, so the recipe excludes them by a filter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from embedstore.stores.contract import HISTORY_VECTOR, PointId

__all__ = ["KEY_VARIABLE", "LANGUAGES", "RECIPES", "Values", "snippet"]

KEY_VARIABLE = "QDRANT_API_KEY"
LANGUAGES = ("curl", "python", "javascript", "go")
RECIPES = {
    "embedding": "by a psi(X) that you have",
    "history": "from a history, psi(X) computed inside Qdrant",
    "filters": "with filters, without what was watched, the second page",
}
LIMIT = 10
PAGE = 5


@dataclass(frozen=True)
class Values:
    """What a snippet is filled in with. psi belongs to run_id; first: the movies that it should print."""

    url: str
    host: str
    grpc_port: int
    alias: str
    run_id: str
    who: str
    history: Sequence[PointId]
    psi: Sequence[float]
    integer_ids: bool
    genre: str | None = None
    year: int | None = None


def snippet(recipe: str, language: str, values: Values, first: Sequence[object]) -> str:
    """Return one recipe as a program; it prints one line per movie: movie_id, score, title.

    With curl it prints Qdrant's answer as it is. first: the movie ids to expect on top.
    """
    mark = "#" if language in ("curl", "python") else "//"
    expected = f"{mark} {_line(values.who)}; the first movies: {', '.join(map(_line, first)) or 'none'}\n"
    return expected + _filled(_TEMPLATES[language](recipe), {**_common(values), **_FILLS[language](values)})


def _curl(recipe: str) -> str:
    if recipe == "history":
        return _CURL_KNOWN + _CURL.replace("'JSON'", "JSON").replace("@BODY@", _CURL_HISTORY)
    return _CURL_RUN + _CURL.replace("@BODY@", _CURL_PSI if recipe == "embedding" else _CURL_FILTERS)


def _python(recipe: str) -> str:
    return _PYTHON_HEAD + _PYTHON_QUERY[recipe] + _PYTHON_TAIL


def _javascript(recipe: str) -> str:
    return _JAVASCRIPT_HEAD + _JAVASCRIPT_QUERY[recipe] + _JAVASCRIPT_TAIL


def _go(recipe: str) -> str:
    return _GO_HEAD + _GO_QUERY[recipe] + _GO_TAIL


def _filled(template: str, values: Mapping[str, str]) -> str:
    return re.sub(r"@([A-Z_]+)@", lambda found: values[found[1]], template)


def _common(values: Values) -> dict[str, str]:
    return {
        "URL": values.url,
        "HOST": values.host,
        "PORT": str(values.grpc_port),
        "TLS": "true" if values.url.startswith("https://") else "false",
        "ALIAS": values.alias,
        "RUN": values.run_id,
        "PSI": ", ".join(map(repr, values.psi)),
        "IDS": ", ".join(map(_text, values.history)),
        "KEY": KEY_VARIABLE,
        "VECTOR": HISTORY_VECTOR,
        "LIMIT": str(LIMIT),
        "PAGE": str(PAGE),
    }


def _json_fills(values: Values) -> dict[str, str]:
    must = []
    if values.genre is not None:
        must.append(f'{{"key": "genres", "match": {{"value": {_text(values.genre)}}}}}')
    if values.year is not None:
        must.append(f'{{"key": "year", "range": {{"gte": {values.year}}}}}')
    return {"MUST": ", ".join(must)}


def _python_fills(values: Values) -> dict[str, str]:
    must = []
    if values.genre is not None:
        match = f"models.MatchValue(value={_text(values.genre)})"
        must.append(f'models.FieldCondition(key="genres", match={match})')
    if values.year is not None:
        must.append(f'models.FieldCondition(key="year", range=models.Range(gte={values.year}))')
    return {"MUST": ", ".join(must)}


def _go_fills(values: Values) -> dict[str, str]:
    must = []
    if values.genre is not None:
        must.append(f'qdrant.NewMatch("genres", {_text(values.genre)})')
    if values.year is not None:
        must.append(f'qdrant.NewRange("year", &qdrant.Range{{Gte: qdrant.PtrOf({values.year}.0)}})')
    ids = [
        f"qdrant.NewIDNum({point})" if isinstance(point, int) else f"qdrant.NewIDUUID({_text(point)})"
        for point in values.history
    ]
    kind = "Integer" if values.integer_ids else "String"
    return {"MUST": ", ".join(must), "IDS": ", ".join(ids), "KIND": kind}


def _text(value: object) -> str:
    """Return value as a literal of JSON, which all four languages read."""
    return json.dumps(value, ensure_ascii=isinstance(value, str) and not value.isprintable())


def _line(value: object) -> str:
    """Return value as a part of a comment, which must not end early."""
    return value if isinstance(value, str) and value.isprintable() else _text(value)


_TEMPLATES = {"curl": _curl, "python": _python, "javascript": _javascript, "go": _go}
_FILLS = {"curl": _json_fills, "python": _python_fills, "javascript": _json_fills, "go": _go_fills}

# A header from a file, so that the key is in no list of processes; with an empty key it is not sent.
_CURL = """\
curl -sS --fail-with-body "@URL@/collections/@ALIAS@/points/query" \\
  -H @<(printf 'api-key: %s' "${@KEY@-}") -H "Content-Type: application/json" --data-binary @- <<'JSON'
@BODY@
JSON
"""
_CURL_RUN = "# psi is of run @RUN@: an answer whose payload has another run_id has no meaning\n"
_CURL_PSI = """\
{
  "query": [@PSI@],
  "limit": @LIMIT@,
  "with_payload": true
}"""
_CURL_KNOWN = """\
# Only ids that the collection has: a single unknown one makes the whole request fail.
known=$(curl -sS --fail-with-body "@URL@/collections/@ALIAS@/points" \\
  -H @<(printf 'api-key: %s' "${@KEY@-}") -H "Content-Type: application/json" \\
  -d '{"ids": [@IDS@], "with_payload": false}' |
  grep -o '"id":[^,}]*' | cut -d : -f 2 | paste -sd , -)
"""
_CURL_HISTORY = """\
{
  "query": {"recommend": {"positive": [$known], "strategy": "average_vector"}},
  "lookup_from": {"collection": "@ALIAS@", "vector": "@VECTOR@"},
  "filter": {"must_not": [{"has_id": [$known]}]},
  "limit": @LIMIT@,
  "with_payload": true
}"""
_CURL_FILTERS = """\
{
  "query": [@PSI@],
  "filter": {
    "must": [@MUST@],
    "must_not": [{"has_id": [@IDS@]}]
  },
  "offset": @PAGE@,
  "limit": @PAGE@,
  "with_payload": true
}"""

_PYTHON_HEAD = """\
# pip install qdrant-client
import os

from qdrant_client import QdrantClient, models

client = QdrantClient("@URL@", api_key=os.environ.get("@KEY@"))
"""
_PYTHON_QUERY = {
    "embedding": """\
run_id = "@RUN@"  # of psi
psi = [@PSI@]
points = client.query_points("@ALIAS@", query=psi, limit=@LIMIT@).points
""",
    "history": """\
run_id = client.get_collection("@ALIAS@").config.metadata["run_id"]
history = [@IDS@]
# Only ids that the collection has: a single unknown one makes the whole request fail.
known = [point.id for point in client.retrieve("@ALIAS@", history, with_payload=False)]
points = client.query_points(
    "@ALIAS@",
    query=models.RecommendQuery(
        recommend=models.RecommendInput(positive=known, strategy=models.RecommendStrategy.AVERAGE_VECTOR)
    ),
    lookup_from=models.LookupLocation(collection="@ALIAS@", vector="@VECTOR@"),
    query_filter=models.Filter(must_not=[models.HasIdCondition(has_id=known)]),
    limit=@LIMIT@,
).points
""",
    "filters": """\
run_id = "@RUN@"  # of psi
psi = [@PSI@]
watched = [@IDS@]
points = client.query_points(
    "@ALIAS@",
    query=psi,
    query_filter=models.Filter(
        must=[@MUST@],
        must_not=[models.HasIdCondition(has_id=watched)],
    ),
    offset=@PAGE@,
    limit=@PAGE@,
).points
""",
}
_PYTHON_TAIL = """\
for point in points:
    if point.payload["run_id"] != run_id:
        raise SystemExit(f"run {point.payload['run_id']} answered, psi is of run {run_id}: ask again")
    print(point.payload["movie_id"], point.score, point.payload["title"])
"""

_JAVASCRIPT_HEAD = """\
// npm install @qdrant/js-client-rest; save as recipe.mjs
import { QdrantClient } from "@qdrant/js-client-rest";

const client = new QdrantClient({ url: "@URL@", apiKey: process.env.@KEY@ });
"""
_JAVASCRIPT_QUERY = {
    "embedding": """\
const runId = "@RUN@"; // of psi
const psi = [@PSI@];
const { points } = await client.query("@ALIAS@", { query: psi, limit: @LIMIT@, with_payload: true });
""",
    "history": """\
const runId = (await client.getCollection("@ALIAS@")).config.metadata.run_id;
const ids = [@IDS@];
// Only ids that the collection has: a single unknown one makes the whole request fail.
const known = (await client.retrieve("@ALIAS@", { ids, with_payload: false })).map(({ id }) => id);
const { points } = await client.query("@ALIAS@", {
  query: { recommend: { positive: known, strategy: "average_vector" } },
  lookup_from: { collection: "@ALIAS@", vector: "@VECTOR@" },
  filter: { must_not: [{ has_id: known }] },
  limit: @LIMIT@,
  with_payload: true,
});
""",
    "filters": """\
const runId = "@RUN@"; // of psi
const psi = [@PSI@];
const watched = [@IDS@];
const { points } = await client.query("@ALIAS@", {
  query: psi,
  filter: {
    must: [@MUST@],
    must_not: [{ has_id: watched }],
  },
  offset: @PAGE@,
  limit: @PAGE@,
  with_payload: true,
});
""",
}
_JAVASCRIPT_TAIL = """\
for (const { payload, score } of points) {
  if (payload.run_id !== runId) {
    throw new Error(`run ${payload.run_id} answered, psi is of run ${runId}: ask again`);
  }
  console.log(payload.movie_id, score, payload.title);
}
"""

_GO_HEAD = """\
// go get github.com/qdrant/go-client; save as main.go (gRPC, port @PORT@)
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/qdrant/go-client/qdrant"
)

func main() {
	ctx := context.Background()
	client, err := qdrant.NewClient(&qdrant.Config{
		Host: "@HOST@", Port: @PORT@, UseTLS: @TLS@, APIKey: os.Getenv("@KEY@"),
	})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close()

"""
_GO_QUERY = {
    "embedding": """\
	runID := "@RUN@" // of psi
	psi := []float32{@PSI@}
	points, err := client.Query(ctx, &qdrant.QueryPoints{
		CollectionName: "@ALIAS@",
		Query:          qdrant.NewQueryDense(psi),
		Limit:          qdrant.PtrOf(uint64(@LIMIT@)),
		WithPayload:    qdrant.NewWithPayload(true),
	})
""",
    "history": """\
	info, err := client.GetCollectionInfo(ctx, "@ALIAS@")
	if err != nil {
		log.Fatal(err)
	}
	runID := info.GetConfig().GetMetadata()["run_id"].GetStringValue()
	// Only ids that the collection has: a single unknown one makes the whole request fail.
	known, err := client.Get(ctx, &qdrant.GetPoints{
		CollectionName: "@ALIAS@",
		Ids:            []*qdrant.PointId{@IDS@},
		WithPayload:    qdrant.NewWithPayload(false),
	})
	if err != nil {
		log.Fatal(err)
	}
	var positive []*qdrant.VectorInput
	var watched []*qdrant.PointId
	for _, point := range known {
		positive = append(positive, qdrant.NewVectorInputID(point.GetId()))
		watched = append(watched, point.GetId())
	}
	points, err := client.Query(ctx, &qdrant.QueryPoints{
		CollectionName: "@ALIAS@",
		Query: qdrant.NewQueryRecommend(&qdrant.RecommendInput{
			Positive: positive,
			Strategy: qdrant.RecommendStrategy_AverageVector.Enum(),
		}),
		LookupFrom:  &qdrant.LookupLocation{CollectionName: "@ALIAS@", VectorName: qdrant.PtrOf("@VECTOR@")},
		Filter:      &qdrant.Filter{MustNot: []*qdrant.Condition{qdrant.NewHasID(watched...)}},
		Limit:       qdrant.PtrOf(uint64(@LIMIT@)),
		WithPayload: qdrant.NewWithPayload(true),
	})
""",
    "filters": """\
	runID := "@RUN@" // of psi
	psi := []float32{@PSI@}
	watched := []*qdrant.PointId{@IDS@}
	points, err := client.Query(ctx, &qdrant.QueryPoints{
		CollectionName: "@ALIAS@",
		Query:          qdrant.NewQueryDense(psi),
		Filter: &qdrant.Filter{
			Must:    []*qdrant.Condition{@MUST@},
			MustNot: []*qdrant.Condition{qdrant.NewHasID(watched...)},
		},
		Offset:      qdrant.PtrOf(uint64(@PAGE@)),
		Limit:       qdrant.PtrOf(uint64(@PAGE@)),
		WithPayload: qdrant.NewWithPayload(true),
	})
""",
}
_GO_TAIL = """\
	if err != nil {
		log.Fatal(err)
	}
	for _, point := range points {
		payload := point.GetPayload()
		if answered := payload["run_id"].GetStringValue(); answered != runID {
			log.Fatalf("run %s answered, psi is of run %s: ask again", answered, runID)
		}
		fmt.Println(payload["movie_id"].Get@KIND@Value(), point.GetScore(), payload["title"].GetStringValue())
	}
}
"""
