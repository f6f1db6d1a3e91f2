// The page: a form for an image and a question, and the answer as it is generated.

import { decode } from "./image.js";
import { VLM } from "./vlm.js";

const MAX_NEW_TOKENS = 64;
const [form, file, shown, question, ask, answer, status] = [
  ...["form", "image", "shown", "question", "ask", "answer", "status"],
].map((id) => document.getElementById(id));

file.addEventListener("change", () => {
  URL.revokeObjectURL(shown.src);
  shown.hidden = file.files.length === 0;
  if (!shown.hidden) shown.src = URL.createObjectURL(file.files[0]);
});

try {
  const vlm = await VLM.open();
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    run(vlm);
  });
  ask.disabled = false;
  status.textContent = "Ready.";
} catch (error) {
  status.textContent = `The model cannot be opened: ${error.message}`;
}

async function run(vlm) {
  ask.disabled = true;
  answer.textContent = "";
  status.textContent = "Answering…";
  const times = [performance.now()];
  try {
    const image = file.files.length === 0 ? null : await decodeChosen();
    for await (const text of vlm.answer(image, question.value, MAX_NEW_TOKENS)) {
      answer.textContent = text;
      times.push(performance.now());
      await new Promise((resolve) => setTimeout(resolve)); // so that the text appears
    }
    status.textContent = summary(times);
  } catch (error) {
    status.textContent = error.message;
  }
  ask.disabled = false;
}

async function decodeChosen() {
  try {
    return await decode(file.files[0]);
  } catch {
    throw new Error(`${file.files[0].name} is not an image that this browser can read.`);
  }
}

function summary(times) {
  const tokens = times.length - 1;
  if (tokens === 0) return "The answer is empty.";
  const first = Math.round(times[1] - times[0]);
  if (tokens === 1) return `1 token after ${first} ms.`;
  const rate = (1000 * (tokens - 1)) / (times.at(-1) - times[1]);
  return `First token after ${first} ms, then ${rate.toFixed(1)} tokens/s.`;
}
