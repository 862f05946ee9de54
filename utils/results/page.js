"use strict";
// A waiting picture stands as text behind its place, which costs little. It is shown when the reader
// comes near it, or prints.
const waiting = document.querySelectorAll("img.waits");
const show = (image) => {
  image.src = image.nextElementSibling.textContent;
  near.unobserve(image);
};
const near = new IntersectionObserver(
  (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => show(entry.target)),
  { rootMargin: "1000px" },
);
waiting.forEach((image) => near.observe(image));
addEventListener("beforeprint", () => waiting.forEach(show));
