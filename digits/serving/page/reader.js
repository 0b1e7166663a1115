// Reads pictures beside the page, so that drawing never waits for it.

import { Model, softmax } from "./model.js";
import { read } from "./recognition.js";

const loading = Model.load();
loading.then(
  ({ classes, side, channels, ink, sure, served }) => postMessage({ classes, side, channels, ink, sure, served }),
  (error) => postMessage({ error: error.message }),
);

onmessage = async ({ data: { rgba, width, height } }) => {
  try {
    const model = await loading;
    const found = read(rgba, width, height, model.side, false);
    const logits = found.length ? await model.logits(found.map((one) => one.image)) : [];
    postMessage(found.map((one, place) => ({ ...one, shares: softmax(logits[place]) })));
  } catch (error) {
    postMessage({ error: error.message });
  }
};
