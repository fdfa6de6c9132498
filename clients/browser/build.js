// Writes metrics-ingest.js (ES module) and metrics-ingest.classic.js (for <script src>) from source/metrics-ingest.js.
// It removes comments, white space and optional punctuation; it relies on the source to end every statement with a semicolon.
import { readFileSync, writeFileSync } from "node:fs";

const here = (name) => new URL(name, import.meta.url);
const source = readFileSync(here("source/metrics-ingest.js"), "utf8");
const { version } = JSON.parse(readFileSync(here("package.json"), "utf8"));
const banner = `// metrics-ingest ${version}, Apache-2.0\n`;

// Strings, templates and regular expressions stay as they are; so does one space between two words.
const token = /("(?:[^"\\]|\\.)*"|`(?:[^`\\]|\\.)*`|(?<=\()\/(?![/*])(?:[^/\\\n[]|\\.|\[[^\]]*\])+\/)|\/\/.*|\s*([^\w\s$"`/]|\/(?!\/))\s*|\s+/g;
const short = source
  .replace(/\s*\/\/ .*$/gm, "")
  .replace(token, (_, literal, sign) => literal ?? sign ?? " ")
  .replace(/;}/g, "}")
  .replace(/(?<!\w)\((\w+)\)=>/g, "$1=>") // not after a word: async (x) =>
  .trim();

writeFileSync(here("metrics-ingest.js"), `${banner}${short}\n`);
// In a block, because the constants of a classic script would be global; createClient becomes a method of the one global.
writeFileSync(here("metrics-ingest.classic.js"), `${banner}{${short.replace("export function ", "var MetricsIngest={")}}}\n`);
