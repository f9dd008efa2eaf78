// One layer's weights, each of them at home in memory or in an image on disk.
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

// Whether the weight is a tensor of many experts, each of which is computed with on its own.
bool is_of_experts(const Weight& weight);

class LayerWeights {
  public:
    // The image's name is `image_stem` and what tells the layout.
    LayerWeights(std::vector<Weight*> weights, const std::string& image_stem);

    uint64_t bytes() const { return bytes_; }
    const std::vector<Weight*>& weights() const { return weights_; }
    size_t part_of(const ggml_tensor* tensor) const;
    ImageFile& image() { return image_; }
    // Whether all of them are at home, or the weight `part`; and how many bytes are.
    bool at_home() const { return home_bytes_ == bytes_; }
    bool at_home(size_t part) const { return home_[part]; }
    uint64_t home_bytes() const { return home_bytes_; }
    uint64_t locked() const { return locked_; }

    // Where the layer is when it is at home: `bytes()` at `offset`.
    void settle(Pages& pages, uint64_t offset);
    // Of each weight, whether it is meant.
    using Parts = std::vector<bool>;
    Parts all() const { return Parts(weights_.size(), true); }

    // Reads `parts` from the model's files and lays them out. Throws WindowFailure.
    void bring_home(ComposedFile& file, const Parts& parts);
    // The same from the image; false if there is none that is sound.
    bool bring_home_from_image(const Parts& parts);
    // Writes the image, from home and, what is not there, from the model's files. Throws WindowFailure.
    void make_image(ComposedFile& file);
    // Gives the memory of all but `kept` back.
    void leave_home(const Parts& kept);
    // Locks what is at home in memory, as far as this process may.
    void lock();
    // Lets every tensor point home.
    void point_home();

  private:
    Parts missing(const Parts& parts) const;
    void fill(ComposedFile& file, const Parts& parts);
    void drop(const Parts& parts);
    void arrived(const Parts& parts);
    char* home() const { return pages_->data() + offset_; }

    std::vector<Weight*> weights_;
    uint64_t bytes_ = 0;
    ImageFile image_;
    std::vector<ImagePart> parts_;
    Pages* pages_ = nullptr;
    uint64_t offset_ = 0;
    Parts home_;
    Parts are_locked_;
    uint64_t home_bytes_ = 0;
    uint64_t locked_ = 0;
};

}  // namespace edged
