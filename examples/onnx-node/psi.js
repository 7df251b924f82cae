// Prints psi of a history as JSON, from the folder that `embedstore export --onnx` wrote:
//     npm install && node psi.js ../../export/RUN 50,181,258

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { InferenceSession, Tensor } from 'onnxruntime-node';

const [folder, history] = process.argv.slice(2);
if (!history) {
  fail('usage: node psi.js EXPORT MOVIE_IDS, as in: node psi.js ../../export/RUN 50,181,258');
}
const vocabulary = JSON.parse(readFileSync(join(folder, 'vocabulary.json'), 'utf8'));
if (vocabulary.schema !== 1) {
  fail(`${folder} has schema ${vocabulary.schema}, this reads 1`);
}
const rowOf = new Map(vocabulary.movie_ids.map((id, row) => [String(id), row]));
const ids = history.split(',');
const rows = ids.filter((id) => rowOf.has(id)).map((id) => rowOf.get(id));
if (rows.length === 0) {
  fail(`run ${vocabulary.run_id} knows none of the movies ${history}, so there is no psi`);
}
const session = await InferenceSession.create(join(folder, 'model.onnx'));
const input = new Tensor('int64', BigInt64Array.from(rows, BigInt), [1, rows.length]);
const { psi } = await session.run({ rows: input });
const unknown_movies = ids.filter((id) => !rowOf.has(id));
console.log(JSON.stringify({ run_id: vocabulary.run_id, unknown_movies, psi: [...psi.data] }));

function fail(sentence) {
  console.error(`Error: ${sentence}`);
  process.exit(1);
}
