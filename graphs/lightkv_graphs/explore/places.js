// @ts-check
// Where an image's cells lie on a canvas.

/** The places of an image's cells on a canvas, in its pixels. */
export class Places {
  constructor(image, width, height) {
    this.image = image;
    this.width = width;
    this.height = height;
  }

  x(col) {
    return Math.round((col * this.width) / this.image.cols);
  }

  y(row) {
    return Math.round((row * this.height) / this.image.rows);
  }

  /** The cell's rectangle added to a path. */
  cell(path, row, col) {
    path.rect(this.x(col), this.y(row), this.x(col + 1) - this.x(col), this.y(row + 1) - this.y(row));
  }

  /** @returns {[number, number]} */
  middle(row, col) {
    return [((col + 0.5) * this.width) / this.image.cols, ((row + 0.5) * this.height) / this.image.rows];
  }

  /** Lines wherever two neighbouring cells, or a cell and the rim if it counts, differ in a value. */
  borders(value, rim) {
    const { rows, cols, cells } = this.image;
    const path = new Path2D();
    const at = (row, col) =>
      row < 0 || col < 0 || row >= rows || col >= cols ? rim : value(cells[row * cols + col]);
    const line = (x, y, toX, toY) => {
      path.moveTo(x, y);
      path.lineTo(toX, toY);
    };
    for (let row = 0; row <= rows; row++) {
      for (let col = 0; col <= cols; col++) {
        const here = at(row, col);
        const inner = rim !== undefined || (row > 0 && row < rows);
        const side = rim !== undefined || (col > 0 && col < cols);
        if (inner && col < cols && here !== at(row - 1, col))
          line(this.x(col), this.y(row), this.x(col + 1), this.y(row));
        if (side && row < rows && here !== at(row, col - 1))
          line(this.x(col), this.y(row), this.x(col), this.y(row + 1));
      }
    }
    return path;
  }
}
