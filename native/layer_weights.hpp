// One layer's weights: at home in memory, or as an image on disk.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "composed_file.hpp"
#include "image_file.hpp"
#include "pages.hpp"
#include "placement.hpp"

namespace edged {

class LayerWeights {
  public:
    // The image's name is `image_stem` and what tells the layout.
    LayerWeights(std::vector<Weight*> weights, const std::string& image_stem);

    uint64_t bytes() const { return bytes_; }
    const std::vector<Weight*>& weights() const { return weights_; }
    size_t part_of(const ggml_tensor* tensor) const;
    ImageFile& image() { return image_; }
    bool at_home() const { return at_home_; }
    uint64_t locked() const { return locked_; }

    // Where the layer is when it is at home: `bytes()` at `offset`.
    void settle(Pages& pages, uint64_t offset);
    // Reads it from the model's files and lays it out. Throws WindowFailure.
    void bring_home(ComposedFile& file);
    // The same from the image; false if there is none that is sound.
    bool bring_home_from_image();
    // Writes the image, from home or, where it is not there, from the model's files. Throws WindowFailure.
    void make_image(ComposedFile& file);
    // Gives its memory back.
    void leave_home();
    // Locks it in memory; false where this process may not.
    bool lock();
    // Lets every tensor point home.
    void point_home();

  private:
    void fill(ComposedFile& file);
    char* home() const { return pages_->data() + offset_; }

    std::vector<Weight*> weights_;
    uint64_t bytes_ = 0;
    ImageFile image_;
    std::vector<ImagePart> parts_;
    Pages* pages_ = nullptr;
    uint64_t offset_ = 0;
    bool at_home_ = false;
    uint64_t locked_ = 0;
};

}  // namespace edged
