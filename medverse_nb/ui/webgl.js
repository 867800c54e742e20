// Gives the WebGL context of a neighbour's canvas back when the widget closes.
//
// A browser keeps 16 contexts, and frees that of a canvas that has left the page only when it
// collects garbage; a cell that is run again and again would take the contexts of others.

const SEEK_MS = 100;

export default () => {
  const canvases = new Set();
  return {
    initialize: () => () => {
      for (const canvas of canvases) {
        canvas.getContext("webgl2")?.getExtension("WEBGL_lose_context")?.loseContext();
      }
    },
    render({ el }) {
      const seek = setInterval(() => {
        const canvas = el.closest(".mv-webgl")?.querySelector("canvas");
        if (!canvas) return;
        canvases.add(canvas);
        clearInterval(seek);
      }, SEEK_MS);
      return () => clearInterval(seek);
    },
  };
};
