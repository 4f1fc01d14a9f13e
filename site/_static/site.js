// The Lab in the front page: as tall as it is, and as light or dark as the page around it.
for (const frame of document.querySelectorAll('iframe.lab')) {
  const fit = () => {
    const inner = frame.contentDocument, main = inner?.querySelector('main');
    if (!main) return;
    const size = () => { frame.style.height = `${main.scrollHeight}px`; };
    const shade = () => {
      inner.body.dataset.jpThemeLight = document.documentElement.dataset.theme !== 'dark';
    };
    new ResizeObserver(size).observe(main);
    new MutationObserver(shade).observe(document.documentElement,
      {attributes: true, attributeFilter: ['data-theme']});
    size();
    shade();
  };
  frame.addEventListener('load', fit);
  if (frame.contentDocument?.readyState === 'complete') fit();
}

// The search field is called what stands on it, with its keys
for (const button of document.querySelectorAll('.search-button-field'))
  button.removeAttribute('aria-label');
