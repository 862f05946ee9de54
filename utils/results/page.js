"use strict";
// A waiting picture stands as text at the end of the page, in a block of many, which costs little.
// It is shown when the reader comes near its place, or prints.
const contents = new Map(); // from the place of a picture to a function that gives its content
const places = [...document.querySelectorAll("img.waits")];
for (const block of document.querySelectorAll("script.pictures")) {
  let sources = null;
  const read = () => (sources ??= block.textContent.trim().split("\n"));
  places
    .splice(0, Number(block.dataset.count))
    .forEach((image, number) => contents.set(image, () => read()[number]));
}
const show = (image) => {
  image.src = contents.get(image)();
  contents.delete(image);
  near.unobserve(image);
};
const near = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting && contents.has(target)) show(target);
    }
  },
  { rootMargin: "1000px" },
);
for (const image of contents.keys()) near.observe(image);
addEventListener("beforeprint", () => [...contents.keys()].forEach(show));
