// Run an ONNX file in ONNX Runtime Web: node onnx_web.mjs MODEL.onnx INPUT.bin SIZE... > OUTPUT.bin
//
// INPUT.bin holds float32 numbers, SIZE... is their shape. The package onnxruntime-web is looked
// for from the current folder upwards.

import { readFileSync, writeSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(process.cwd() + "/");
const ort = require("onnxruntime-web");
ort.env.wasm.numThreads = 1;

const [model, input, ...shape] = process.argv.slice(2);
const bytes = readFileSync(input);
const values = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
const session = await ort.InferenceSession.create(readFileSync(model), {
  executionProviders: ["wasm"],
});
const tensor = new ort.Tensor("float32", values, shape.map(Number));
const answers = await session.run({ [session.inputNames[0]]: tensor });
const { data } = answers[session.outputNames[0]];
const out = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
for (let at = 0; at < out.length; ) at += writeSync(1, out, at);
