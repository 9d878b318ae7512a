"use strict";
(function () {
  const canvas = document.getElementById("viewer");
  const tools = document.getElementById("tools");
  const fallback = document.getElementById("fallback");
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const START = { azimuth: 35, elevation: 18, zoom: 1 };
  const view = Object.assign({ shade: 0, mesh: 0, spin: !still }, START);
  const HALF_ANGLE = (14 * Math.PI) / 180;

  const VERTEX = `#version 300 es
    layout(location=0) in vec4 place; layout(location=1) in vec4 normal; layout(location=2) in vec4 colour;
    uniform mat4 camera; uniform mat3 turn;
    out vec3 n; out vec3 world; out vec3 c;
    void main() {
      vec3 p = place.xyz * 2.0 - 1.0;
      n = turn * normal.xyz; world = normal.xyz; c = colour.rgb;
      gl_Position = camera * vec4(p, 1.0);
    }`;
  const FRAGMENT = `#version 300 es
    precision highp float;
    in vec3 n; in vec3 world; in vec3 c; uniform int shade; out vec4 result;
    void main() {
      vec3 m = normalize(n), w = normalize(world);
      if (!gl_FrontFacing) { m = -m; w = -w; }
      if (shade == 2) { result = vec4(w * 0.5 + 0.5, 1.0); return; }
      vec3 base = shade == 1 ? vec3(0.56, 0.54, 0.51) : pow(c, vec3(2.2));
      float key = max(dot(m, normalize(vec3(-0.45, 0.65, 0.75))), 0.0);
      float fill = max(dot(m, normalize(vec3(0.8, 0.1, 0.5))), 0.0);
      float sky = 0.5 + 0.5 * w.z;
      vec3 halfway = normalize(normalize(vec3(-0.45, 0.65, 0.75)) + vec3(0.0, 0.0, 1.0));
      float gloss = pow(max(dot(m, halfway), 0.0), 40.0) * 0.10;
      vec3 light = vec3(0.74, 0.73, 0.70) * key + vec3(0.15, 0.17, 0.20) * fill
                 + mix(vec3(0.20, 0.19, 0.18), vec3(0.40, 0.42, 0.45), sky);
      result = vec4(pow(min(base * light + gloss, vec3(1.0)), vec3(1.0 / 2.2)), 1.0);
    }`;
  const SHADOW_VERTEX = `#version 300 es
    uniform mat4 camera; uniform float level; out vec2 at;
    void main() {
      at = vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2.0 - 1.0;
      gl_Position = camera * vec4(at * 1.25, level, 1.0);
    }`;
  const SHADOW_FRAGMENT = `#version 300 es
    precision highp float; in vec2 at; uniform float strength; out vec4 result;
    void main() {
      float r = length(at); float a = strength * pow(max(1.0 - r, 0.0), 1.6);
      result = vec4(vec3(0.0), a);
    }`;

  function decode(text, Kind) {
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return new Kind(bytes.buffer);
  }

  function showFallback() {
    const frames = Array.from(document.querySelectorAll("#views img"), (image) => image.src);
    canvas.hidden = true; canvas.style.display = "none"; tools.hidden = true; fallback.hidden = false;
    document.getElementById("hint").textContent = "This browser shows no WebGL: slide to turn the object.";
    const picture = fallback.querySelector("img"), slider = fallback.querySelector("input");
    if (!frames.length) { picture.hidden = true; slider.hidden = true; return; }
    slider.max = String(frames.length - 1);
    const show = () => { picture.src = frames[Number(slider.value)]; };
    slider.oninput = show; show();
  }

  const gl = canvas.getContext("webgl2", { antialias: true, alpha: true });
  if (!gl) { showFallback(); return; }
  canvas.addEventListener("webglcontextlost", (event) => { event.preventDefault(); showFallback(); });

  function program(vertex, fragment) {
    const made = gl.createProgram();
    [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]].forEach(([kind, text]) => {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, text); gl.compileShader(shader); gl.attachShader(made, shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    });
    gl.linkProgram(made);
    return made;
  }

  function upload(mesh) {
    const array = gl.createVertexArray();
    gl.bindVertexArray(array);
    [[mesh.position, Uint16Array, gl.UNSIGNED_SHORT], [mesh.normal, Int8Array, gl.BYTE],
     [mesh.colour, Uint8Array, gl.UNSIGNED_BYTE]].forEach(([text, Kind, type], slot) => {
      gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
      gl.bufferData(gl.ARRAY_BUFFER, decode(text, Kind), gl.STATIC_DRAW);
      gl.enableVertexAttribArray(slot);
      gl.vertexAttribPointer(slot, 4, type, true, 0, 0);
    });
    const index = decode(mesh.index, Uint32Array);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, index, gl.STATIC_DRAW);
    gl.bindVertexArray(null);
    return { array, count: index.length, floor: mesh.floor };
  }

  let solid, shadow, meshes, empty;
  try {
    solid = program(VERTEX, FRAGMENT); shadow = program(SHADOW_VERTEX, SHADOW_FRAGMENT);
    meshes = JSON.parse(document.getElementById("meshes").textContent).map(upload);
    empty = gl.createVertexArray();
  } catch (error) { showFallback(); return; }
  const at = (made, name) => gl.getUniformLocation(made, name);
  const where = { camera: at(solid, "camera"), turn: at(solid, "turn"), shade: at(solid, "shade"),
    floorCamera: at(shadow, "camera"), level: at(shadow, "level"), strength: at(shadow, "strength") };

  // z up, azimuth 0 on +x (the front), towards +y; columns of the result are GL's
  function camera(aspect) {
    const a = (view.azimuth * Math.PI) / 180, e = (view.elevation * Math.PI) / 180;
    const back = [Math.cos(e) * Math.cos(a), Math.cos(e) * Math.sin(a), Math.sin(e)];
    const right = [-Math.sin(a), Math.cos(a), 0];
    const up = [-Math.sin(e) * Math.cos(a), -Math.sin(e) * Math.sin(a), Math.cos(e)];
    const distance = 1.04 / Math.sin(HALF_ANGLE) / view.zoom;
    const narrow = Math.min(1, aspect), f = narrow / Math.tan(HALF_ANGLE);
    const near = Math.max(0.02, distance - 2.6), far = distance + 2.6;
    const x = f / aspect, k = (far + near) / (near - far), l = (2 * far * near) / (near - far);
    const matrix = [];
    for (let i = 0; i < 3; i++) matrix.push(x * right[i], f * up[i], k * back[i], -back[i]);
    matrix.push(0, 0, -k * distance + l, distance);
    const turn = [];
    for (let i = 0; i < 3; i++) turn.push(right[i], up[i], back[i]);
    return { matrix, turn };
  }

  function draw() {
    const ratio = Math.min(devicePixelRatio || 1, 2);
    const width = Math.round(canvas.clientWidth * ratio), height = Math.round(canvas.clientHeight * ratio);
    if (!width || !height) return;
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    const mesh = meshes[view.mesh], { matrix, turn } = camera(width / height);
    gl.viewport(0, 0, width, height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.DEPTH_TEST); gl.disable(gl.BLEND);
    gl.useProgram(solid);
    gl.uniformMatrix4fv(where.camera, false, matrix);
    gl.uniformMatrix3fv(where.turn, false, turn);
    gl.uniform1i(where.shade, view.shade);
    gl.bindVertexArray(mesh.array);
    gl.drawElements(gl.TRIANGLES, mesh.count, gl.UNSIGNED_INT, 0);
    const strength = 0.34 * Math.min(1, Math.max(0, (view.elevation + 2) / 12));
    if (strength > 0) {
      gl.enable(gl.BLEND);
      gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
      gl.useProgram(shadow);
      gl.uniformMatrix4fv(where.floorCamera, false, matrix);
      gl.uniform1f(where.level, mesh.floor - 0.004);
      gl.uniform1f(where.strength, strength);
      gl.bindVertexArray(empty);
      gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
    }
  }

  let waiting = false, last = 0, visible = true;
  function ask() { if (!waiting) { waiting = true; requestAnimationFrame(frame); } }
  function frame(now) {
    waiting = false;
    if (view.spin && visible) {
      view.azimuth = (view.azimuth + Math.min(50, now - (last || now)) * 0.022) % 360;
      ask();
    }
    last = now;
    draw();
  }

  const spinner = document.getElementById("spin");
  const press = (button, on) => button.setAttribute("aria-pressed", String(on));
  function setSpin(on) { view.spin = on; last = 0; press(spinner, on); ask(); }
  function turnBy(azimuth, elevation) {
    setSpin(false);
    view.azimuth = (view.azimuth + azimuth + 360) % 360;
    view.elevation = Math.max(-85, Math.min(85, view.elevation + elevation));
  }
  function zoomBy(factor) { view.zoom = Math.max(0.5, Math.min(5, view.zoom * factor)); ask(); }

  const fingers = new Map();
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
    setSpin(false);
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const now = [event.clientX, event.clientY];
    if (fingers.size === 2) {
      const other = Array.from(fingers.entries()).find(([id]) => id !== event.pointerId)[1];
      const span = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]);
      zoomBy(span(now) / Math.max(1, span(before)));
    } else {
      turnBy((before[0] - now[0]) * 0.5, (now[1] - before[1]) * 0.4);
    }
    fingers.set(event.pointerId, now);
  });
  ["pointerup", "pointercancel"].forEach((kind) =>
    canvas.addEventListener(kind, (event) => fingers.delete(event.pointerId)));
  canvas.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas && !event.ctrlKey) return;
    event.preventDefault();
    zoomBy(Math.exp(-event.deltaY * 0.0015));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const moves = {
      ArrowLeft: () => turnBy(-10, 0), ArrowRight: () => turnBy(10, 0),
      ArrowUp: () => turnBy(0, 8), ArrowDown: () => turnBy(0, -8),
      "+": () => zoomBy(1.15), "=": () => zoomBy(1.15), "-": () => zoomBy(1 / 1.15),
      Home: () => { setSpin(false); Object.assign(view, START, { azimuth: 0 }); },
      " ": () => setSpin(!view.spin),
    };
    if (!moves[event.key] || event.metaKey || event.ctrlKey || event.altKey) return;
    event.preventDefault();
    moves[event.key]();
  });

  function choose(name, apply) {
    const buttons = Array.from(tools.querySelectorAll("[data-" + name + "]"));
    buttons.forEach((button) => button.addEventListener("click", () => {
      apply(Number(button.dataset[name]));
      if (name !== "side") buttons.forEach((other) => press(other, other === button));
      ask();
    }));
  }
  choose("shade", (value) => { view.shade = value; });
  choose("mesh", (value) => { view.mesh = value; });
  choose("side", (value) => { setSpin(false); view.azimuth = value; view.elevation = 10; });
  spinner.addEventListener("click", () => setSpin(!view.spin));
  new ResizeObserver(ask).observe(canvas);
  new IntersectionObserver((entries) => { visible = entries[0].isIntersecting; last = 0; ask(); }).observe(canvas);
  press(spinner, view.spin);
  tools.hidden = false;
  ask();
})();
