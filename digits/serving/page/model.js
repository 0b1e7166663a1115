// The exported model in ONNX Runtime (WebAssembly), in a browser or in Node.

import * as ort from "./runtime/ort.wasm.bundle.min.mjs";

const RUNTIME = "runtime/ort-wasm-simd-threaded.wasm.gz";

/** Fetch a file that lies beside this one. */
async function bytes(name) {
  const answer = await fetch(new URL(name, import.meta.url));
  if (!answer.ok) throw new Error(`${name}: ${answer.status}`);
  return answer.arrayBuffer();
}

/** Unpack gzip; some servers have done so already. */
export async function unpacked(packed) {
  const [first, second] = new Uint8Array(packed, 0, 2);
  if (first !== 0x1f || second !== 0x8b) return packed;
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

export class Model {
  /** Load the runtime, the model and the names of its classes; `load` returns the content of a file of this folder. */
  static async load(load = bytes) {
    const [runtime, network, about] = await Promise.all([RUNTIME, "model.onnx", "model.json"].map((name) => load(name)));
    ort.env.wasm.numThreads = 1; // more need headers that a static host does not send
    ort.env.wasm.wasmBinary = await unpacked(runtime);
    const model = new Model();
    model.session = await ort.InferenceSession.create(network);
    Object.assign(model, JSON.parse(new TextDecoder().decode(about)));
    [model.input] = model.session.inputMetadata;
    [, model.channels, model.side] = model.input.shape;
    return model;
  }

  /** Return the logits of each image, a Float32Array [channels * side * side] in 0 … 1. */
  async logits(images) {
    const size = this.channels * this.side * this.side;
    const pixels = new Float32Array(images.length * size);
    images.forEach((image, place) => pixels.set(image, place * size));
    const tensor = new ort.Tensor("float32", pixels, [images.length, this.channels, this.side, this.side]);
    const found = await this.session.run({ [this.input.name]: tensor });
    const { data } = found[this.session.outputNames[0]];
    const count = data.length / images.length;
    return images.map((_, place) => data.slice(place * count, (place + 1) * count));
  }
}

/** Return the probability of each class. */
export function softmax(logits) {
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (value) => Math.exp(value - largest));
  const sum = powers.reduce((one, other) => one + other);
  return powers.map((value) => value / sum);
}
