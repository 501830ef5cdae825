// Greedy tokens of an exported folder by transformers.js.
// node everywhere.mjs FOLDER PACKAGES DTYPES TOKENS MESSAGES
// FOLDER is read and nothing else; PACKAGES is the node_modules that holds @huggingface/transformers; DTYPES has commas
// between; MESSAGES is JSON. Prints one line of JSON: {"text", "prompt": ids, "new": {dtype: ids}}.
import path from "node:path";
import { pathToFileURL } from "node:url";

const [folder, packages, dtypes, tokens, messages] = process.argv.slice(2);
const library = path.join(packages, "@huggingface/transformers/dist/transformers.node.mjs");
const { AutoModelForCausalLM, AutoTokenizer, env } = await import(pathToFileURL(library));
env.allowRemoteModels = false;
env.localModelPath = path.dirname(folder) + path.sep;
env.useFSCache = false;

const name = path.basename(folder);
const tokenizer = await AutoTokenizer.from_pretrained(name);
const chat = { add_generation_prompt: true, tokenize: false };
const text = tokenizer.apply_chat_template(JSON.parse(messages), chat);
const inputs = tokenizer(text, { add_special_tokens: false });
const ids = (tensor) => Array.from(tensor.data, Number);
const result = { text, prompt: ids(inputs.input_ids), new: {} };
for (const dtype of dtypes.split(",")) {
  const options = dtype === "own" ? {} : { dtype };
  const model = await AutoModelForCausalLM.from_pretrained(name, { ...options, device: "cpu" });
  const output = await model.generate({ ...inputs, max_new_tokens: Number(tokens), do_sample: false });
  result.new[dtype] = ids(output).slice(result.prompt.length);
}
console.log(JSON.stringify(result));
