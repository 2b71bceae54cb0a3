// sharp on all originals of a folder, from memory: both sizes of each, as `clone()` makes them from one input.
//
//     node sharp.mjs '{"originals": …, "outputs": …, "kept": 12, "sizes": [256, 512], …}'
//
// Run in the folder where sharp is installed; prints JSON. The clock runs while pictures are transcoded and not before.

import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";

const sharp = createRequire(`${process.cwd()}/`)("sharp");
const options = JSON.parse(process.argv[2]);

const WARM_UP = 8; // images before the clock runs

if (options.libvipsThreads) sharp.concurrency(options.libvipsThreads);

async function transcode(data) {
  const original = sharp(data).autoOrient();
  const renditions = options.sizes.map((size) =>
    original
      .clone()
      .resize({ width: size, height: size, fit: "inside", withoutEnlargement: true })
      .webp({ quality: options.quality, effort: options.effort })
      .toBuffer(),
  );
  return Promise.all(renditions);
}

async function transcodeAll(originals, use) {
  let next = 0;
  async function work() {
    while (next < originals.length) {
      const number = next++;
      use(number, await transcode(originals[number]));
    }
  }
  await Promise.all(Array.from({ length: options.imagesAtOnce }, work));
}

const names = readdirSync(options.originals).sort();
const originals = names.map((name) => readFileSync(`${options.originals}/${name}`));

await transcodeAll(originals.slice(0, WARM_UP), () => {});

const kept = [];
let bytes = 0;
const cpuBefore = process.cpuUsage();
const started = process.hrtime.bigint();
await transcodeAll(originals, (number, renditions) => {
  bytes += renditions.reduce((sum, rendition) => sum + rendition.length, 0);
  if (number < options.kept) kept.push([names[number], renditions]);
});
const seconds = Number(process.hrtime.bigint() - started) / 1e9;
const cpu = process.cpuUsage(cpuBefore);

for (const [name, renditions] of kept) {
  options.sizes.forEach((size, at) => writeFileSync(`${options.outputs}/${name}.${size}.webp`, renditions[at]));
}

const { sharp: version, vips, webp } = sharp.versions;
console.log(
  JSON.stringify({
    images: originals.length,
    seconds,
    cpuSeconds: (cpu.user + cpu.system) / 1e6,
    bytes,
    versions: { Node: process.versions.node, sharp: version, "sharp's libvips": vips, "sharp's libwebp": webp },
  }),
);
