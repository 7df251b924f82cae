// Recommendations over HTTP from a Qdrant alias that embedstore keeps: no Python, no model, no run folder.
//
//   GET /recommend?history=50,181,258&k=10   ->  {"run_id", "recommendations": [{"movie_id", "score", "title"}]}
//
// Environment: QDRANT_URL, QDRANT_API_KEY (a read-only token does), ALIAS (movies), PORT (8080).

import { createHash } from "node:crypto";
import { createServer } from "node:http";
import { QdrantClient } from "@qdrant/js-client-rest";

const SCHEMA = 1; // of the contract that this application knows
const NAMESPACE = Buffer.from("6f1b0f0e6d0c5a539c0e0a3a7c1a5b1d", "hex");
const ATTEMPTS = 5; // per question; a second one is needed only while the alias moves
const LARGEST_K = 1000;

const alias = process.env.ALIAS ?? "movies";
const client = new QdrantClient({
  url: process.env.QDRANT_URL ?? "http://localhost:6333",
  apiKey: process.env.QDRANT_API_KEY,
});

class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** The id of a movie's point: the movie id where it is an unsigned integer (exact to 2^53), else UUID version 5. */
function pointId(movieId) {
  if (/^(0|[1-9]\d*)$/.test(movieId)) return Number(movieId);
  const hash = createHash("sha1").update(NAMESPACE).update(movieId).digest().subarray(0, 16);
  hash[6] = (hash[6] & 0x0f) | 0x50;
  hash[8] = (hash[8] & 0x3f) | 0x80;
  return hash.toString("hex").replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

/** The run that the alias serves now. */
async function liveRun() {
  const { schema, tower, run_id } = (await client.getCollection(alias)).config.metadata ?? {};
  if (!(schema <= SCHEMA)) {
    throw new Refusal(503, `${alias} has schema ${schema}, this application reads ${SCHEMA}; upgrade it`);
  }
  if (tower !== "additive") {
    throw new Refusal(503, `run ${run_id} has a ${tower} tower, Qdrant cannot compute psi(X) for it`);
  }
  return run_id;
}

let runId; // that the last answer came from

/** The k best movies for a history, all by one run; asks again where the alias moved meanwhile. */
async function recommend(history, k) {
  const ids = history.map(pointId);
  for (let attempt = 0; attempt < ATTEMPTS; attempt += 1) {
    const before = (runId ??= await liveRun());
    const points = await ask(ids, k);
    runId = await liveRun(); // the query and its lookup each resolve the alias: no flip in between, no mixture
    if (points !== null && runId === before && points.every(({ payload }) => payload.run_id === before)) {
      return {
        run_id: before,
        recommendations: points.map(({ payload, score }) => ({
          movie_id: payload.movie_id,
          score,
          title: payload.title,
        })),
      };
    }
  }
  throw new Refusal(503, `${alias} moved ${ATTEMPTS} times during one question; ask again`);
}

/** The points of one recommend query; null where the collection no longer has an id that it just had. */
async function ask(ids, k) {
  const known = (await client.retrieve(alias, { ids, with_payload: false })).map(({ id }) => id);
  if (known.length === 0) throw new Refusal(404, "no movie of the history is in the collection");
  try {
    const { points } = await client.query(alias, {
      query: { recommend: { positive: known, strategy: "average_vector" } },
      lookup_from: { collection: alias, vector: "history" },
      filter: { must_not: [{ has_id: known }] },
      limit: k,
      with_payload: ["movie_id", "title", "run_id"],
    });
    return points;
  } catch (error) {
    if (error.status === 404) return null;
    throw error;
  }
}

const server = createServer(async (request, response) => {
  const send = (status, content) => {
    response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(content));
  };
  try {
    const { pathname, searchParams } = new URL(request.url, "http://localhost");
    const history = (searchParams.get("history") ?? "").split(",").filter(Boolean);
    const k = Number(searchParams.get("k") ?? 10);
    if (pathname !== "/recommend") throw new Refusal(404, "expected /recommend?history=50,181,258&k=10");
    if (history.length === 0) throw new Refusal(400, "history is empty; expected movie ids with commas");
    if (!(Number.isInteger(k) && k >= 1 && k <= LARGEST_K)) {
      throw new Refusal(400, `k must be a whole number from 1 to ${LARGEST_K}`);
    }
    send(200, await recommend(history, k));
  } catch (error) {
    if (!(error instanceof Refusal)) console.error(error);
    send(error instanceof Refusal ? error.status : 502, {
      error: error instanceof Refusal ? error.message : "Qdrant did not answer; see the log",
    });
  }
});

server.listen(Number(process.env.PORT ?? 8080), "127.0.0.1", () => {
  console.log(`listening on http://127.0.0.1:${server.address().port}`);
});
