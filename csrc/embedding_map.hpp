// A dual encoder's embeddings to factors, on the CUDA device. On the host NumPy does.
#pragma once

#include <cstdint>

#include "views.hpp"

namespace cexnn::cuda {

// By a matrix (d_in, d_out) or a network (cexnn.gated); with neither, a scale. On the device.
struct EmbeddingMap {
  float scale = 1.0F;
  MatrixView<const float> matrix;
  VectorView<const float> network;
};

// embeddings (n, d_in) to out (n, d_out), both on the device; done when it returns. The sums of a
// row depend on nothing but the row. Throws std::invalid_argument where shapes do not agree.
void map_embeddings(MatrixView<const float> embeddings, const EmbeddingMap& map,
                    MatrixView<float> out);

}  // namespace cexnn::cuda
