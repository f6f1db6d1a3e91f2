// A VLM of `sparse-vlm export`: greedy answers to questions about an image, in onnxruntime-web.

import * as ort from "./lib/ort.wasm.min.mjs";
import { Tokenizer } from "./lib/tokenizers.min.mjs";
import { preprocess } from "./image.js";

ort.env.wasm.wasmPaths = new URL("./lib/", import.meta.url).href;

export class VLM {
  // Open the files in the folder of the page.
  static async open() {
    const names = ["export.json", "tokenizer.json", "tokenizer_config.json"];
    const [settings, vocabulary, configuration] = await Promise.all(names.map(async (name) => (await get(name)).json()));
    const vlm = new VLM();
    vlm.settings = settings;
    vlm.tokenizer = new Tokenizer(vocabulary, configuration);
    for (const [part, file] of Object.entries(settings.files)) {
      vlm[part] = await ort.InferenceSession.create(await (await get(file)).arrayBuffer());
    }
    return vlm;
  }

  // Yield the answer so far after each token. `image`: {data: RGBA, width, height}, or null.
  async *answer(image, question, maxNewTokens) {
    const ids = this.encode(image, question);
    const { positions, eos_token_ids: ends } = this.settings;
    if (positions !== null && ids.length + maxNewTokens > positions) {
      throw new Error(`The question and its answer exceed the ${positions} tokens of this model.`);
    }
    let embeddings = await this.embed(ids);
    if (image !== null) await this.place(image, ids, embeddings);
    let cache = this.emptyCache();
    const written = [];
    for (let length = ids.length; written.length < maxNewTokens; length++) {
      const count = embeddings.dims[1];
      const output = await this.decoder.run({
        inputs_embeds: embeddings,
        attention_mask: integers(Array(length).fill(1)),
        position_ids: integers(Array.from({ length: count }, (_, place) => length - count + place)),
        ...cache,
      });
      const token = largest(output.logits.data);
      if (ends.includes(token)) return;
      written.push(token);
      yield this.tokenizer.decode(written, { skip_special_tokens: true }).trim();
      for (const name of Object.keys(cache)) cache[name] = output[name.replace("past_key_values", "present")];
      embeddings = await this.embed([token]);
    }
  }

  // The token ids of a prompt, with one placeholder for each visual token.
  encode(image, question) {
    const { control_tokens: controls, image_token: placeholder, prompts, visual_tokens: count } = this.settings;
    if (!question.trim()) throw new Error("The question is empty.");
    const typed = controls.find((token) => question.includes(token));
    if (typed) throw new Error(`The question contains ${typed}, which has a meaning of its own. Remove it.`);
    const [before, after] = prompts[image === null ? 0 : 1];
    const expanded = before.replace(placeholder.text, placeholder.text.repeat(count));
    return this.tokenizer.encode(expanded + question + after, { add_special_tokens: false }).ids;
  }

  // Replace the embeddings of the placeholders by those of the image.
  async place(image, ids, embeddings) {
    const { data, dims } = preprocess(image, this.settings);
    const feed = { pixel_values: new ort.Tensor("float32", data, dims) };
    const rois = this.settings.initial_rois;
    if (rois !== null) feed.initial_rois = new ort.Tensor("float32", Float32Array.from(rois.flat()), [1, rois.length, 4]);
    const { image_features: features } = await this.vision.run(feed);
    const start = ids.indexOf(this.settings.image_token.id);
    embeddings.data.set(features.data, start * features.dims[2]);
  }

  async embed(ids) {
    return (await this.embedding.run({ input_ids: integers(ids) })).inputs_embeds;
  }

  emptyCache() {
    const cache = {};
    this.settings.layers.forEach(({ heads, key_width, value_width }, index) => {
      for (const [name, width] of [["key", key_width], ["value", value_width]]) {
        cache[`past_key_values.${index}.${name}`] = new ort.Tensor("float32", new Float32Array(0), [1, heads, 0, width]);
      }
    });
    return cache;
  }
}

async function get(name) {
  const response = await fetch(new URL(name, import.meta.url));
  if (!response.ok) throw new Error(`${name} cannot be loaded: ${response.status} ${response.statusText}.`);
  return response;
}

// A row of integers as int64[1, n].
function integers(values) {
  return new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
}

function largest(values) {
  let best = 0;
  for (let place = 1; place < values.length; place++) if (values[place] > values[best]) best = place;
  return best;
}
